// Ollama's transfer package as a client of a registry, for the suite in test/clients: "go build ./ollamaget" here.
module github.com/shoal-cache/shoal/hack/tools/ollama

go 1.26.7

require github.com/ollama/ollama v0.17.4

require (
	golang.org/x/sync v0.17.0 // indirect
	golang.org/x/sys v0.37.0 // indirect
)
