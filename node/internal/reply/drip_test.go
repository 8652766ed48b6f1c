package reply

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestDrip_AClientNeverWaitsLongForAByte(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := httptest.NewRecorder()
		d := NewDrip(w)
		sent := func() int {
			d.mu.Lock()
			defer d.mu.Unlock()
			return w.Body.Len()
		}
		_, err := d.Write(bytes.Repeat([]byte("a"), 1000))
		require.NoError(t, err)
		for seen := sent(); seen < 1000-1; seen = sent() {
			time.Sleep(dripEvery + time.Second)
			synctest.Wait()
			require.Greater(t, sent(), seen, "no byte came")
		}
		time.Sleep(time.Hour)
		require.Equal(t, 1000, sent())
		_, err = d.Write([]byte("the end"))
		require.NoError(t, err)
		require.NoError(t, d.End())
		require.Equal(t, 1007, w.Body.Len())
	})
}

func TestDrip_WhatIsNotEndedIsNeverWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := httptest.NewRecorder()
		d := NewDrip(w)
		_, err := d.Write([]byte("all that there is, of which nobody knows yet whether it is right"))
		require.NoError(t, err)
		d.Stop()
		time.Sleep(time.Hour)
		require.Less(t, w.Body.Len(), 64)
	})
}

// However it is written, and whenever bytes stay away, all come in order.
func TestDrip_GivesWhatItTakes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		pieces := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 100), 0, 20).Draw(rt, "pieces")
		hows := rapid.SliceOfN(rapid.IntRange(0, 2), len(pieces), len(pieces)).Draw(rt, "how")
		w := httptest.NewRecorder()
		d := NewDrip(w)
		var want []byte
		for i, p := range pieces {
			want = append(want, p...)
			var err error
			switch hows[i] {
			case 0:
				_, err = d.Write(p)
			case 1:
				_, err = d.ReadFrom(io.LimitReader(bytes.NewReader(p), int64(len(p))))
			case 2:
				_, err = d.ReadFrom(bytes.NewReader(p))
			}
			require.NoError(rt, err)
			if rand.IntN(2) == 0 {
				d.mu.Lock()
				d.moved = time.Time{}
				d.mu.Unlock()
				d.drip()
			}
		}
		require.NoError(rt, d.End())
		require.True(rt, bytes.Equal(want, w.Body.Bytes()))
	})
}

func TestDrip_AShortSourceIsToldAsItIs(t *testing.T) {
	t.Parallel()
	d := NewDrip(httptest.NewRecorder())
	n, err := d.ReadFrom(&io.LimitedReader{R: bytes.NewReader(make([]byte, 50)), N: 100})
	require.NoError(t, err)
	require.Equal(t, int64(50), n)
	require.NoError(t, d.End())
	require.NoError(t, http.NewResponseController(d).Flush())
}

// Who reads on from elsewhere writes on.
func TestDrip_ASourceThatFailsSaysNothingAboutTheConnection(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	d := NewDrip(w)
	n, err := d.ReadFrom(&io.LimitedReader{R: io.MultiReader(strings.NewReader("all "), iotest.ErrReader(syscall.EIO)),
		N: 100})
	require.ErrorIs(t, err, syscall.EIO)
	require.EqualValues(t, 4, n)
	_, err = d.Write([]byte("that there is"))
	require.NoError(t, err)
	require.NoError(t, d.End())
	require.Equal(t, "all that there is", w.Body.String())
}
