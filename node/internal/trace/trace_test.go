package trace_test

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/trace"
	"github.com/shoal-cache/shoal/test/otlptest"
)

func TestTracer_SendsByTheProtocolThatTheKeyOrTheEnvironmentSays(t *testing.T) {
	for what, c := range map[string]struct {
		protocol string
		env      map[string]string
		grpc     bool
	}{
		"nobody says":               {},
		"the key says gRPC":         {protocol: trace.GRPC, grpc: true},
		"the environment says gRPC": {env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, grpc: true},
		"the environment says it of traces alone": {grpc: true,
			env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}},
		"the key goes before the environment": {protocol: trace.HTTP,
			env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
			for name, value := range c.env {
				t.Setenv(name, value)
			}
			r := &otlptest.Receiver{}
			endpoint := r.HTTP(t)
			if c.grpc {
				endpoint = r.GRPC(t)
			}
			tr, err := trace.New(t.Context(), trace.Options{Endpoint: endpoint, Protocol: c.protocol, Ratio: 1,
				Log: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			_, span := tr.Start(t.Context(), "pull")
			span.End(nil)
			require.NoError(t, tr.Close(t.Context()))
			require.Len(t, r.Spans(), 1)
			byGRPC, apiKey := r.Last()
			require.Equal(t, c.grpc, byGRPC)
			require.Equal(t, "secret", apiKey)
		})
	}
}

func TestNew_RefusesAProtocolThatItDoesNotSpeak(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	_, err := trace.New(t.Context(), trace.Options{Endpoint: "http://collector:4318"})
	require.ErrorContains(t, err, `OTEL_EXPORTER_OTLP_PROTOCOL is "http/json"; want http/protobuf or grpc`)
	_, err = trace.New(t.Context(), trace.Options{})
	require.NoError(t, err, "where there are no traces nobody cares")
}

func TestNew_DoesNotLookForTheReceiver(t *testing.T) {
	t.Parallel()
	for _, protocol := range trace.Protocols() {
		tr, err := trace.New(t.Context(), trace.Options{Endpoint: "http://127.0.0.1:1", Protocol: protocol, Ratio: 1,
			Log: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		require.NoError(t, tr.Close(t.Context()), "there is nothing to send")
	}
}

func tracer(t *testing.T, endpoint string, ratio float64) *trace.Tracer {
	t.Helper()
	tr, err := trace.New(t.Context(), trace.Options{Endpoint: endpoint, Ratio: ratio,
		Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return tr
}

//nolint:paralleltest // it counts what the process allocates
func TestTracer_ThatIsOffAllocatesNothing(t *testing.T) {
	off := tracer(t, "", 1)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/", nil)
	other := context.WithValue(t.Context(), struct{ a int }{}, 1)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		r, span := off.Answer(r, "pull")
		ctx, child := off.Start(r.Context(), "fetch")
		child.Text("shoal.digest", "sha256:ab")
		child.Number("shoal.size", 1)
		ctx = trace.Carry(other, ctx)
		if trace.Parent(ctx) != nil || trace.ID(ctx) != "" || span.On() {
			panic("off")
		}
		child.End(nil)
		span.End(nil)
	}))
	require.NoError(t, off.Close(t.Context()))
}

func TestTracer_JoinsTheTraceOfAClientAndOfAPeer(t *testing.T) {
	t.Parallel()
	got := &otlptest.Receiver{}
	address := got.HTTP(t)
	here, there := tracer(t, address, 0), tracer(t, address, 0)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/", nil)
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	r, pull := here.Answer(r, "pull")
	ctx, fetch := here.Start(trace.Carry(context.Background(), r.Context()), "fetch")
	_, coordinate := there.Start(trace.WithParent(t.Context(), trace.Parent(ctx)), "coordinate")
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", trace.ID(ctx))
	coordinate.End(errors.New("it broke"))
	fetch.End(nil)
	pull.End(nil)
	require.NoError(t, errors.Join(here.Close(t.Context()), there.Close(t.Context())))
	by := map[string]otlptest.Span{}
	for _, s := range got.Spans() {
		by[s.GetName()] = s
		require.Equal(t, "0af7651916cd43dd8448eb211c80319c", hex.EncodeToString(s.GetTraceId()))
	}
	require.Len(t, by, 3)
	require.Equal(t, "b7ad6b7169203331", hex.EncodeToString(by["pull"].GetParentSpanId()))
	require.Equal(t, by["pull"].GetSpanId(), by["fetch"].GetParentSpanId())
	require.Equal(t, by["fetch"].GetSpanId(), by["coordinate"].GetParentSpanId())
	require.Equal(t, "it broke", by["coordinate"].GetStatus().GetMessage())
}

func TestTracer_OfWhatNobodySamplesTellsNobody(t *testing.T) {
	t.Parallel()
	got := &otlptest.Receiver{}
	address := got.HTTP(t)
	tr := tracer(t, address, 0)
	ctx, span := tr.Start(t.Context(), "fetch")
	require.False(t, span.On())
	require.Nil(t, trace.Parent(ctx))
	span.End(nil)
	require.NoError(t, tr.Close(t.Context()))
	require.Empty(t, got.Spans())
}

func TestWithParent_WhatIsNoSpanIsPassedOver(t *testing.T) {
	t.Parallel()
	for _, told := range [][]byte{nil, {1}, make([]byte, 25), make([]byte, 26), make([]byte, 1<<10)} {
		require.Empty(t, trace.ID(trace.WithParent(t.Context(), told)))
	}
}

func TestNew_RefusesWhatIsNoReceiver(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"collector:4317", "grpc://collector:4317", "http://", "/v1/traces"} {
		_, err := trace.New(t.Context(), trace.Options{Endpoint: endpoint})
		require.ErrorContains(t, err, "want the URL of an OTLP receiver, such as http://otel-collector:4318", endpoint)
	}
}
