package main

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	servervalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metavalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
)

var limits = map[string]uint64{
	"rule": validation.StaticEstimatedCostLimit,
	"crd":  validation.StaticEstimatedCRDCostLimit,
}

type rule struct {
	Path string `json:"path"`
	Rule string `json:"rule"`
	Cost uint64 `json:"cost"`
}

// check returns what an API server says to the creation of the CRD, costs of rules included.
func check(crd *apiextensions.CustomResourceDefinition) []string {
	return messages(validation.ValidateCustomResourceDefinition(context.Background(), crd))
}

// costs returns the estimated cost of each CEL rule, and the sum for each version. ValidateCustomResourceDefinition
// works out the same numbers but tells only those over a limit. A schema that cannot be compiled has no costs.
func costs(crd *apiextensions.CustomResourceDefinition) ([]rule, map[string]uint64) {
	rules, totals := []rule{}, map[string]uint64{}
	env := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())

	var walk func(s *apiextensions.JSONSchemaProps, at *field.Path, c *validation.CELSchemaContext)
	walk = func(s *apiextensions.JSONSchemaProps, at *field.Path, c *validation.CELSchemaContext) {
		if s == nil {
			return
		}
		if info, err := c.TypeInfo(); err == nil && info != nil && len(s.XValidations) > 0 {
			compiled, _ := cel.Compile(info.Schema, info.DeclType, celconfig.PerCallLimit, env, cel.NewExpressionsEnvLoader())
			for i, r := range compiled {
				times := r.MaxCardinality
				if c.MaxCardinality != nil {
					times = *c.MaxCardinality
				}
				cost := r.MaxCost * times
				if over, _ := bits.Mul64(r.MaxCost, times); over != 0 {
					cost = ^uint64(0)
				}
				p := at.Child("x-kubernetes-validations").Index(i)
				rules = append(rules, rule{p.Child("rule").String(), s.XValidations[i].Rule, cost})
				c.TotalCost.ObserveExpressionCost(p, cost)
				if r.MessageExpression != nil {
					cost = r.MessageExpressionMaxCost
					expression := s.XValidations[i].MessageExpression
					rules = append(rules, rule{p.Child("messageExpression").String(), expression, cost})
					c.TotalCost.ObserveExpressionCost(p, cost)
				}
			}
		}
		for name, p := range s.Properties {
			walk(&p, at.Child("properties").Key(name), c.ChildPropertyContext(&p, name))
		}
		if s.AdditionalProperties != nil {
			a := s.AdditionalProperties.Schema
			walk(a, at.Child("additionalProperties"), c.ChildAdditionalPropertiesContext(a))
		}
		if s.Items != nil {
			walk(s.Items.Schema, at.Child("items"), c.ChildItemsContext(s.Items.Schema))
		}
	}

	for i, v := range crd.Spec.Versions {
		at, s := field.NewPath("spec", "validation"), crd.Spec.Validation // one schema for all versions is kept here
		if v.Schema != nil {
			at, s = field.NewPath("spec", "versions").Index(i).Child("schema"), v.Schema
		}
		if s == nil || s.OpenAPIV3Schema == nil {
			continue
		}
		root := validation.RootCELContext(s.OpenAPIV3Schema)
		walk(s.OpenAPIV3Schema, at.Child("openAPIV3Schema"), root)
		totals[v.Name] = root.TotalCost.Total
	}
	slices.SortFunc(rules, func(a, b rule) int { return strings.Compare(a.Path, b.Path) })
	return slices.Compact(rules), totals
}

// try puts one object through what an API server does at a create, or at an update when the case has an old object:
// prune, default, check metadata, schema, list types and CEL rules. It differs in that status is not set aside, so
// that a case can hold spec and status at once, and in that metadata a server fills in may be left out.
func try(crd *apiextensions.CustomResourceDefinition, c testCase) (*caseResult, error) {
	res := &caseResult{Name: c.Name, Pruned: []string{}, Defaulted: c.New}
	obj := &unstructured.Unstructured{Object: c.New}
	gvk := obj.GroupVersionKind()

	val, err := apiextensions.GetSchemaForVersion(crd, gvk.Version)
	if err != nil || val == nil || gvk.Group != crd.Spec.Group || gvk.Kind != crd.Spec.Names.Kind {
		res.Errors = []string{fmt.Sprintf("apiVersion, kind: %s is not served by this CRD", gvk)}
		return res, nil
	}
	s, err := schema.NewStructural(val.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	s = s.DeepCopy()
	if err := defaulting.PruneDefaults(s); err != nil {
		return nil, err
	}
	validator, _, err := servervalidation.NewSchemaValidator(val.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}

	if res.Pruned, err = admit(c.New, s); err != nil {
		res.Errors, res.Pruned = []string{err.Error()}, []string{}
		return res, nil
	}
	res.Defaulted = runtime.DeepCopyJSON(c.New)
	namespaced := crd.Spec.Scope == apiextensions.NamespaceScoped
	complete(obj, namespaced)

	ctx, errs := context.Background(), field.ErrorList{}
	rules, oldObject, celOptions := cel.NewValidator(s, true, celconfig.PerCallLimit), any(nil), []cel.Option{}
	if c.Old == nil {
		named := metavalidation.NameIsDNSSubdomain
		errs = append(errs, metavalidation.ValidateObjectMetaAccessor(obj, namespaced, named, field.NewPath("metadata"))...)
		errs = append(errs, servervalidation.ValidateCustomResource(nil, obj.Object, validator)...)
	} else {
		if _, err := admit(c.Old, s); err != nil {
			return nil, err
		}
		old := &unstructured.Unstructured{Object: c.Old}
		complete(old, namespaced)
		same := common.NewCorrelatedObject(obj.Object, old.Object, &model.Structural{Structural: s})
		oldObject, celOptions = old.Object, append(celOptions, cel.WithRatcheting(same))
		errs = append(errs, metavalidation.ValidateObjectMetaAccessorUpdate(obj, old, field.NewPath("metadata"))...)
		ratchet := servervalidation.WithRatcheting(same)
		errs = append(errs, servervalidation.ValidateCustomResourceUpdate(nil, obj.Object, old.Object, validator, ratchet)...)
	}
	errs = append(errs, objectmeta.Validate(nil, obj.Object, s, false)...)
	if c.Old == nil || len(listtype.ValidateListSetsAndMaps(nil, s, c.Old)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s, obj.Object)...)
	}
	if blocked(errs) {
		errs = append(errs, field.Invalid(nil, nil, "some validation rules were not checked because the object was "+
			"invalid; correct the existing errors to complete validation"))
	} else if rules != nil {
		more, _ := rules.Validate(ctx, nil, s, obj.Object, oldObject, celconfig.RuntimeCELCostBudget, celOptions...)
		errs = append(errs, more...)
	}
	res.Errors = messages(errs)
	return res, nil
}

// admit prunes and defaults an object in place, in the API server's order, and returns the paths that were pruned.
func admit(obj map[string]any, s *schema.Structural) ([]string, error) {
	pruned := pruning.PruneWithOptions(obj, s, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	defaulting.PruneNonNullableNullsWithoutDefaults(obj, s)
	if err := objectmeta.Coerce(nil, obj, s, false, false); err != nil {
		return nil, err
	}
	defaulting.Default(obj, s)
	return append([]string{}, pruned...), nil
}

// complete adds the metadata that a request or a server would add, where the case leaves it out.
func complete(u *unstructured.Unstructured, namespaced bool) {
	if namespaced && u.GetNamespace() == "" {
		u.SetNamespace("default")
	}
	if u.GetResourceVersion() == "" {
		u.SetResourceVersion("1")
	}
}

// blocked says whether the API server leaves out CEL rules because of these errors.
func blocked(errs field.ErrorList) bool {
	return slices.ContainsFunc(errs, func(e *field.Error) bool {
		return slices.Contains([]field.ErrorType{
			field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany,
			field.ErrorTypeTypeInvalid,
		}, e.Type)
	})
}

func messages(errs field.ErrorList) []string {
	out := []string{}
	for _, e := range errs {
		out = append(out, e.Error())
	}
	slices.Sort(out)
	return out
}
