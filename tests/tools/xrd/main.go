// Command xrd says what an API server would make of a Crossplane XRD.
//
// It turns the XRD into the CRD that Crossplane would create, with Crossplane's own code, and puts that CRD and test
// cases through the API server's own validation. So a test need not run an API server to see CEL rules, their costs,
// defaults, pruning and oldSelf at work.
//
// In, as JSON on stdin: request. Out, as JSON on stdout: answer. A CRD (kind CustomResourceDefinition) is taken as it
// is. With -crd the input is the XRD's YAML and the output is only the CRD's YAML. The exit code is 1 only for an input
// that cannot be read; errors that an API server would report are part of the answer.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	xpv1 "github.com/crossplane/crossplane/apis/v2/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	extv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	kjson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/crossplane/crossplane-runtime/v2/pkg/xcrd"
)

type request struct {
	XRD   string     `json:"xrd"` // the YAML itself, or a path (one line)
	Cases []testCase `json:"cases"`
}

type testCase struct {
	Name string         `json:"name"`
	Old  map[string]any `json:"old"` // null for a create
	New  map[string]any `json:"new"`
}

type answer struct {
	CRD       *extv1.CustomResourceDefinition `json:"crd"`
	Dropped   []string                        `json:"dropped"` // in the XRD's schemas, but not in the CRD's
	Rules     []rule                          `json:"rules"`
	Totals    map[string]uint64               `json:"totals"` // estimated cost of all rules, by version
	Limits    map[string]uint64               `json:"limits"`
	CRDErrors []string                        `json:"crdErrors"`
	Cases     []caseResult                    `json:"cases"`
}

type caseResult struct {
	Name      string         `json:"name"`
	Errors    []string       `json:"errors"`
	Pruned    []string       `json:"pruned"` // unknown fields of new that the API server would drop
	Defaulted map[string]any `json:"defaulted"`
}

func main() {
	crdOnly := flag.Bool("crd", false, "read the XRD's YAML, print the CRD's YAML, check nothing")
	flag.Parse()

	if err := run(*crdOnly, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "xrd:", err)
		os.Exit(1)
	}
}

func run(crdOnly bool, in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(in)
	if err != nil {
		return err
	}

	if crdOnly {
		crd, _, err := toCRD(data)
		if err != nil {
			return err
		}
		y, err := yaml.Marshal(crd)
		if err != nil {
			return err
		}
		_, err = out.Write(y)
		return err
	}

	req := request{}
	if err := kjson.Unmarshal(data, &req); err != nil { // unlike encoding/json it keeps integers integers
		return fmt.Errorf("cannot read the request: %w", err)
	}
	ans, err := answerFor(req)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(ans)
}

func answerFor(req request) (*answer, error) {
	text := []byte(req.XRD)
	if !strings.Contains(req.XRD, "\n") {
		var err error
		if text, err = os.ReadFile(req.XRD); err != nil {
			return nil, err
		}
	}
	crd, dropped, err := toCRD(text)
	if err != nil {
		return nil, err
	}
	internal, err := stored(crd)
	if err != nil {
		return nil, err
	}

	rules, totals := costs(internal)
	ans := &answer{CRD: crd, Dropped: dropped, Rules: rules, Totals: totals, Limits: limits, CRDErrors: check(internal)}
	ans.Cases = make([]caseResult, 0, len(req.Cases))
	for _, c := range req.Cases {
		if len(ans.CRDErrors) > 0 {
			invalid := caseResult{Name: c.Name, Errors: []string{"the CRD is not valid"}, Pruned: []string{}}
			ans.Cases = append(ans.Cases, invalid)
			continue
		}
		res, err := try(internal, c)
		if err != nil {
			return nil, fmt.Errorf("case %q: %w", c.Name, err)
		}
		ans.Cases = append(ans.Cases, *res)
	}
	return ans, nil
}

// toCRD returns the CRD for an XRD and the paths of everything in the XRD's schemas that the CRD does not have:
// misspelt keywords, and the few keywords that Crossplane does not copy. Both are lost without a word on a cluster.
func toCRD(text []byte) (*extv1.CustomResourceDefinition, []string, error) {
	crd := &extv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(text, crd); err != nil {
		return nil, nil, fmt.Errorf("cannot read the definition: %w", err)
	}
	if crd.Kind == "CustomResourceDefinition" {
		return crd, []string{}, nil
	}

	xrd := &xpv1.CompositeResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, xrd); err != nil {
		return nil, nil, fmt.Errorf("cannot read the XRD: %w", err)
	}
	// Versions v1 and v2 of an XRD have one Go type here, as in Crossplane; they differ in their default scope.
	if xrd.Spec.Scope == nil && xrd.APIVersion == "apiextensions.crossplane.io/v2" {
		scope := xpv1.CompositeResourceScopeNamespaced
		xrd.Spec.Scope = &scope
	}
	crd, err := xcrd.ForCompositeResource(xrd)
	if err != nil {
		return nil, nil, err
	}
	crd.SetGroupVersionKind(extv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	crd.OwnerReferences = nil // it would need the UID of an XRD on a cluster

	dropped := []string{}
	for i, v := range xrd.Spec.Versions {
		var want, got any
		if err := json.Unmarshal(v.Schema.OpenAPIV3Schema.Raw, &want); err != nil {
			return nil, nil, err
		}
		raw, err := json.Marshal(crd.Spec.Versions[i].Schema.OpenAPIV3Schema)
		if err != nil {
			return nil, nil, err
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			return nil, nil, err
		}
		dropped = append(dropped, missing(fmt.Sprintf("spec.versions[%d].schema.openAPIV3Schema", i), want, got)...)
	}
	slices.Sort(dropped)
	return crd, dropped, nil
}

// missing returns the paths in want that got does not have. Values that mean the same as none at all do not count.
func missing(path string, want, got any) []string {
	var out []string
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for k, v := range w {
			at := path + "." + k
			if have, ok := g[k]; ok {
				out = append(out, missing(at, v, have)...)
			} else if k == "default" || !empty(v) {
				out = append(out, at)
			}
		}
	case []any:
		g, _ := got.([]any)
		for i, v := range w {
			at := fmt.Sprintf("%s[%d]", path, i)
			if i < len(g) {
				out = append(out, missing(at, v, g[i])...)
			} else {
				out = append(out, at)
			}
		}
	}
	return out
}

func empty(v any) bool {
	switch t := v.(type) {
	case map[string]any:
		return len(t) == 0
	case []any:
		return len(t) == 0
	}
	return v == nil || v == false || v == ""
}

// stored returns the CRD as an API server holds it after a create: defaulted, internal version, status reset.
func stored(crd *extv1.CustomResourceDefinition) (*apiextensions.CustomResourceDefinition, error) {
	c := crd.DeepCopy()
	c.Status = extv1.CustomResourceDefinitionStatus{}
	extv1.SetObjectDefaults_CustomResourceDefinition(c)
	out := &apiextensions.CustomResourceDefinition{}
	if err := extv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(c, out, nil); err != nil {
		return nil, err
	}
	for _, v := range out.Spec.Versions {
		if v.Storage {
			out.Status.StoredVersions = []string{v.Name}
		}
	}
	return out, nil
}
