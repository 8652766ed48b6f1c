// Package httpget asks the HTTP servers of processes that a script or a test has started.
package httpget

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

// maxBody is 16 MiB, more than any of them is asked for.
const maxBody = 16 << 20

// Body is the body of a 200 answer. Any other is an error that holds it.
func Body(ctx context.Context, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", url, answer.Status, bytes.TrimSpace(body))
	}
	return body, nil
}
