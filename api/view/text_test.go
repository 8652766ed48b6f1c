package view_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
)

func TestDuration_IsWrittenAsPeopleDo(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0:                       "0s",
		time.Microsecond:        "<1ms",
		340 * time.Millisecond:  "340ms",
		1200 * time.Millisecond: "1.2s",
		9 * time.Second:         "9s",
		30 * time.Second:        "30s",
		time.Minute:             "1m",
		90 * time.Second:        "1m30s",
		20 * time.Minute:        "20m",
		time.Hour:               "1h",
		100 * time.Minute:       "1h40m",
		30 * time.Hour:          "30h",
		72 * time.Hour:          "3d",
		-90 * time.Second:       "-1m30s",
	} {
		require.Equal(t, want, view.Duration(d), "%v", d)
	}
}

func TestCount_AgreesWithItsNoun(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"0 pins": view.Count(0, "pin"), "1 pin": view.Count(1, "pin"), "2 pins": view.Count(2, "pin"),
		"1 copy": view.Count(1, "copy"), "3 copies": view.Count(3, "copy"), "2 days": view.Count(2, "day"),
		"1 copy is": view.Are(1, "copy"), "2 copies are": view.Are(2, "copy"), "0 nodes are": view.Are(0, "node"),
	} {
		require.Equal(t, want, got)
	}
}
