//go:build tools

// Package tools pins provider-kubernetes. The tests use only the CRDs in the module's package/crds; nothing is built.
package tools

import _ "github.com/crossplane-contrib/provider-kubernetes/apis/namespaced/object/v1alpha1"
