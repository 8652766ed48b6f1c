// Package trace makes OpenTelemetry spans of pulls, from a registry front through the plan to peers and registries,
// and sends them to an OTLP receiver.
//
//	pull, download      a request to the registry front or the hub front, in the trace that its client names
//	                    (W3C traceparent)
//	  fetch             a blob that was not here: where it came from, by peer
//	    join            who coordinates it
//	      coordinate    the same at the peer that coordinates; its agent sends this one
//	    upstream        a request to a registry
//	  ask               a question to the hub
//
// A nil Tracer makes no spans and costs nothing, so callers need not ask whether there is one. Registries are told of
// no trace: it is none of their business.
package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options configure a Tracer.
type Options struct {
	// Endpoint is the base URL of an OTLP receiver, such as http://otel-collector:4318. Empty: there are no traces.
	Endpoint string
	// Protocol is one of Protocols. Empty: as OpenTelemetry's variables say, and else HTTP.
	Protocol string
	// Ratio is the share of pulls that are traced, where no caller says which.
	Ratio float64
	// Node and Version are told with each span.
	Node, Version string
	Log           *slog.Logger
}

// Tracer makes spans.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// The protocols by which spans are sent, by their names in OTEL_EXPORTER_OTLP_PROTOCOL.
const (
	HTTP = "http/protobuf"
	GRPC = "grpc"
)

// Protocols are all of them.
func Protocols() []string { return []string{HTTP, GRPC} }

// CheckEndpoint reports why a URL can be no receiver's.
func CheckEndpoint(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("want the URL of an OTLP receiver, such as http://otel-collector:4318, or :4317 where it " +
			"takes gRPC")
	}
	return nil
}

// protocol is the one that Options or else the variables name.
func (o Options) protocol() (string, error) {
	for _, from := range []struct{ name, value string }{
		{"the protocol", o.Protocol},
		{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")},
	} {
		switch from.value {
		case "":
		case HTTP, GRPC:
			return from.value, nil
		default:
			return "", fmt.Errorf("%s is %q; want %s or %s", from.name, from.value, HTTP, GRPC)
		}
	}
	return HTTP, nil
}

// exporter sends spans to the receiver. It connects to nobody yet.
func (o Options) exporter(ctx context.Context) (sdk.SpanExporter, error) {
	if err := CheckEndpoint(o.Endpoint); err != nil {
		return nil, err
	}
	protocol, err := o.protocol()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, err
	}
	if protocol == GRPC {
		return otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(u.String()))
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()))
}

// New makes a Tracer; nil where Options name no receiver. It connects to nobody yet. A receiver that is away costs
// spans and nothing else.
func New(ctx context.Context, o Options) (*Tracer, error) {
	if o.Endpoint == "" {
		return nil, nil //nolint:nilnil // nil is the Tracer that makes no spans
	}
	exporter, err := o.exporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces to %q: %w", o.Endpoint, err)
	}
	// Without this the library writes to standard error by itself.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.Log.Warn("spans not sent", "error", err) }))
	about := resource.NewSchemaless(attribute.String("service.name", "shoal-node"),
		attribute.String("service.version", o.Version), attribute.String("service.instance.id", o.Node))
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(o.Ratio))))
	return &Tracer{provider, provider.Tracer("github.com/shoal-cache/shoal/node")}, nil
}

// closeTimeout bounds the sending of the last spans.
const closeTimeout = 5 * time.Second

// Close sends what is left. It takes its time for that though ctx has ended.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// Span is a piece of work. The zero Span is of no trace.
type Span struct{ span trace.Span }

// Start begins a span below that of ctx, and gives a ctx for what is done in it.
func (t *Tracer) Start(ctx context.Context, name string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx, s := t.tracer.Start(ctx, name)
	return ctx, Span{s}
}

// Answer begins the span of a request, in the trace that its client names, and gives the request with it.
func (t *Tracer) Answer(r *http.Request, name string) (*http.Request, Span) {
	if t == nil {
		return r, Span{}
	}
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return r.WithContext(ctx), Span{s}
}

// On reports whether somebody will see the span.
func (s Span) On() bool { return s.span != nil && s.span.IsRecording() }

// Text notes a property of the span.
func (s Span) Text(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// Number notes a property of the span.
func (s Span) Number(key string, value int64) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int64(key, value))
	}
}

// End ends the span. err is why the work failed, nil where it did not.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End()
}

// Carry gives to the span of from, so that what outlives a caller is in his trace.
func Carry(to, from context.Context) context.Context {
	if c := trace.SpanContextFromContext(from); c.IsValid() {
		return trace.ContextWithSpanContext(to, c)
	}
	return to
}

// ID is that of ctx's trace, where somebody will see it; else empty.
func ID(ctx context.Context) string {
	if c := trace.SpanContextFromContext(ctx); c.IsSampled() {
		return c.TraceID().String()
	}
	return ""
}

// parentSize is that of what peers tell one another of a trace: its ID, the span's ID, and the flags.
const parentSize = 16 + 8 + 1

// Parent is what a peer is told so that its spans are below ctx's; nil where ctx has none that anybody will see.
func Parent(ctx context.Context) []byte {
	c := trace.SpanContextFromContext(ctx)
	if !c.IsSampled() {
		return nil
	}
	id, span := c.TraceID(), c.SpanID()
	told := append(make([]byte, 0, parentSize), id[:]...)
	return append(append(told, span[:]...), byte(c.TraceFlags()))
}

// WithParent gives ctx the span that a peer told of. What is none is passed over.
func WithParent(ctx context.Context, told []byte) context.Context {
	if len(told) != parentSize {
		return ctx
	}
	c := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(told[:16]), SpanID: trace.SpanID(told[16:24]),
		TraceFlags: trace.TraceFlags(told[24]) & trace.FlagsSampled, Remote: true,
	})
	if !c.IsValid() {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, c)
}
