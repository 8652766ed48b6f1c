package upstream

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

func TestBrokenOff_WhatWasGivenUpIsNotAskedForAgain(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		err  error
		ctx  context.Context
		want bool
	}{
		"the connection broke":       {io.ErrUnexpectedEOF, t.Context(), true},
		"nobody wants it any more":   {io.ErrUnexpectedEOF, ended, false},
		"it is longer than it said":  {errLonger, t.Context(), false},
		"the registry throttles":     {content.ErrRateLimit, t.Context(), false},
		"there is no room for it":    {room.ErrFull, t.Context(), false},
		"it takes room for too long": {errors.Join(room.ErrSlow), t.Context(), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, brokenOff(c.ctx, c.err))
		})
	}
}
