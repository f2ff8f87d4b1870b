//go:build tools

// Package tools pins AIBrix's watcher of cache servers, which the tests build straight from its module.
package tools

import _ "github.com/vllm-project/aibrix/cmd/kvcache-watcher"
