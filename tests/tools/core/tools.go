//go:build tools

// Package tools pins the Crossplane core binary that the tests build.
package tools

import _ "github.com/crossplane/crossplane/v2/cmd/crossplane"
