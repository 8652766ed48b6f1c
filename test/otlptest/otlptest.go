// Package otlptest is an OTLP receiver for tests, over real sockets and for both of OTLP's protocols.
package otlptest

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Span is a span, and the service.instance.id of who sent it.
type Span struct {
	*spans.Span
	Node string
}

// Receiver keeps all spans that it is sent. Its zero value is ready.
type Receiver struct {
	collector.UnimplementedTraceServiceServer

	mu     sync.Mutex
	all    []Span
	grpc   bool
	apiKey string
}

// HTTP starts to take spans by HTTP until the test ends, and gives the URL.
func (r *Receiver) HTTP(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return server.URL
}

// GRPC starts to take spans by gRPC until the test ends, and gives the URL.
func (r *Receiver) GRPC(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-ended })
	return "http://" + l.Addr().String()
}

// Spans are those that have come.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// Last tells whether the last came by gRPC, and which api-key its sender gave.
func (r *Receiver) Last() (byGRPC bool, apiKey string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.grpc, r.apiKey
}

func (r *Receiver) take(request *collector.ExportTraceServiceRequest, byGRPC bool, apiKey string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grpc, r.apiKey = byGRPC, apiKey
	for _, about := range request.GetResourceSpans() {
		node := ""
		for _, a := range about.GetResource().GetAttributes() {
			if a.GetKey() == "service.instance.id" {
				node = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range about.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				r.all = append(r.all, Span{s, node})
			}
		}
	}
}

// ServeHTTP takes spans that come by HTTP.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var request collector.ExportTraceServiceRequest
	if err != nil || req.URL.Path != "/v1/traces" || proto.Unmarshal(body, &request) != nil {
		http.Error(w, "no spans", http.StatusBadRequest)
		return
	}
	r.take(&request, false, req.Header.Get("Api-Key"))
}

// Export takes spans that come by gRPC.
func (r *Receiver) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (
	*collector.ExportTraceServiceResponse, error) {
	told, _ := metadata.FromIncomingContext(ctx)
	r.take(request, true, strings.Join(told.Get("api-key"), ","))
	return &collector.ExportTraceServiceResponse{}, nil
}
