//go:build tools

// Package tools pins provider-kubernetes: its program, and the CRDs in the module's package/crds.
package tools

import _ "github.com/crossplane-contrib/provider-kubernetes/cmd/provider"
