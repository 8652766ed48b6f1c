package view

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// ErrNotShown is wrapped where an agent has no such view: it is of an older version.
var ErrNotShown = errors.New("this agent does not show it; it is of an older version")

// mostBytes is how long an answer may be where Client.MostBytes is zero.
const mostBytes = 256 << 20

// Client reads the views of one agent.
type Client struct {
	// HTTP does the requests; nil: http.DefaultClient.
	HTTP *http.Client
	// Base is the admin address, as http://127.0.0.1:5051.
	Base string
	// MostBytes is how long an answer may be; 0: 256 MiB. A longer one is an error. What is decoded of an answer may
	// take many times as much memory.
	MostBytes int64
}

// Get reads a view into a value.
func Get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var into T
	body, err := c.Text(ctx, path, query)
	if err != nil {
		return into, err
	}
	if err := json.Unmarshal(body, &into); err != nil {
		return into, fmt.Errorf("GET %s%s: the answer is not what it should be: %w", c.Base, path, err)
	}
	return into, nil
}

// Text reads an answer as it is.
func (c *Client) Text(ctx context.Context, path string, query url.Values) ([]byte, error) {
	address := strings.TrimSuffix(c.Base, "/") + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", address, err)
	}
	client := cmp.Or(c.HTTP, http.DefaultClient)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	most := cmp.Or(c.MostBytes, mostBytes)
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("GET %s: %w", address, err)
	case int64(len(body)) > most:
		return nil, fmt.Errorf("GET %s: the answer is longer than %s", address, Bytes(most))
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("GET %s: %w", address, ErrNotShown)
	case resp.StatusCode != http.StatusOK:
		text := strings.TrimSpace(string(body))
		return body, fmt.Errorf("GET %s: %s: %s", address, resp.Status, text[:min(len(text), 300)])
	}
	return body, nil
}
