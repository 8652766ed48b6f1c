package page

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// browser is a page in a headless Chromium, which the test steers by the DevTools protocol.
type browser struct {
	t    *testing.T
	wire *websocket.Conn
	last int
	// said are the errors that the browser has written to its console, those of the Content-Security-Policy among them.
	said []string
}

// open starts Chromium; without one the test is skipped.
func open(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs a browser: apt-get install chromium")
	}
	profile := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
		"--remote-debugging-port=0", "--remote-allow-origins=*", "--user-data-dir="+profile, "about:blank")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	port := ""
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(filepath.Join(profile, "DevToolsActivePort"))
		port, _, _ = strings.Cut(string(data), "\n")
		return err == nil && port != ""
	}, time.Minute, 50*time.Millisecond)
	var pages []struct {
		Type string `json:"type"`
		URL  string `json:"webSocketDebuggerUrl"`
	}
	_, body, _ := get(t, "http://127.0.0.1:"+port, "/json")
	require.NoError(t, json.Unmarshal([]byte(body), &pages))
	for _, p := range pages {
		if p.Type != "page" {
			continue
		}
		wire, resp, err := websocket.DefaultDialer.DialContext(t.Context(), p.URL, http.Header{})
		require.NoError(t, err)
		_ = resp.Body.Close()
		t.Cleanup(func() { _ = wire.Close() })
		b := &browser{t: t, wire: wire}
		for _, domain := range []string{"Page", "Runtime", "Log"} {
			b.do(domain+".enable", nil)
		}
		return b
	}
	t.Fatalf("Chromium has no page: %s\n%s", body, errs.String())
	return nil
}

// do sends a command and waits for its result.
func (b *browser) do(method string, params map[string]any) json.RawMessage {
	b.t.Helper()
	b.last++
	require.NoError(b.t, b.wire.WriteJSON(map[string]any{"id": b.last, "method": method, "params": params}))
	for {
		m := b.read()
		if m.ID == b.last {
			require.Nil(b.t, m.Error, method)
			return m.Result
		}
	}
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  any             `json:"error"`
}

func (b *browser) read() (m message) {
	b.t.Helper()
	require.NoError(b.t, b.wire.SetReadDeadline(time.Now().Add(time.Minute)))
	require.NoError(b.t, b.wire.ReadJSON(&m))
	switch m.Method {
	case "Runtime.exceptionThrown", "Runtime.consoleAPICalled":
		b.said = append(b.said, string(m.Params))
	case "Log.entryAdded":
		if strings.Contains(string(m.Params), `"level":"error"`) {
			b.said = append(b.said, string(m.Params))
		}
	}
	return m
}

// visit loads a page.
func (b *browser) visit(address string) {
	b.t.Helper()
	b.do("Page.navigate", map[string]any{"url": address})
	b.until(`document.readyState === "complete" && document.getElementById("pause") !== null`)
}

// until waits until an expression is true.
func (b *browser) until(expression string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return b.value(expression) == true }, time.Minute, 20*time.Millisecond, expression)
}

// value evaluates an expression.
func (b *browser) value(expression string) any {
	b.t.Helper()
	var answer struct {
		Result struct {
			Value any `json:"value"`
		} `json:"result"`
	}
	require.NoError(b.t, json.Unmarshal(b.do("Runtime.evaluate",
		map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}), &answer))
	return answer.Result.Value
}

// size sets the window's size in pixels.
func (b *browser) size(width, height int) {
	b.do("Emulation.setDeviceMetricsOverride",
		map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
}

func (b *browser) dark(on bool) {
	value := "light"
	if on {
		value = "dark"
	}
	b.do("Emulation.setEmulatedMedia",
		map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": value}}})
}

func (b *browser) press(key string) {
	for _, kind := range []string{"keyDown", "keyUp"} {
		code := map[string]int{"Tab": 9, "Enter": 13, " ": 32}[key]
		text := map[string]string{"Enter": "\r", " ": " "}[key]
		b.do("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": key, "code": key,
			"windowsVirtualKeyCode": code, "text": map[string]string{"keyDown": text}[kind]})
	}
}

// shoot writes a picture of all of the page into the folder that SHOAL_SCREENSHOTS names, for somebody to look at.
func (b *browser) shoot(name string) {
	b.t.Helper()
	dir := os.Getenv("SHOAL_SCREENSHOTS")
	if dir == "" {
		return
	}
	var picture struct{ Data string }
	require.NoError(b.t, json.Unmarshal(b.do("Page.captureScreenshot",
		map[string]any{"format": "png", "captureBeyondViewport": true}), &picture))
	data, err := base64.StdEncoding.DecodeString(picture.Data)
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), data, 0o600))
}

// TestBrowser_ShowsEveryScene looks at the page in a real browser: nothing is refused by its own policy, nothing throws,
// nothing is wider than the window, and text can be told from its background.
//
//nolint:paralleltest // one browser at a time is enough for a small machine
func TestBrowser_ShowsEveryScene(t *testing.T) {
	b := open(t)
	for name, s := range map[string]struct {
		scene *gathered
		with  []func(*gathered)
	}{
		"all-well": {scene(8, 3, "node"), []func(*gathered){pinned}},
		"burst": {scene(8, 3, "node"), []func(*gathered){pinned,
			func(g *gathered) { burst(g, "registry.example/team/app", 3) }}},
		"problems": {scene(6, 2, "node"), []func(*gathered){pinned, ill}},
		"empty":    {scene(0, 1, ""), []func(*gathered){func(g *gathered) { g.cluster.Daemons, g.cluster.Swarm = nil, nil }}},
		"large": {scene(200, 5, longName), []func(*gathered){pinned, ill, func(g *gathered) {
			burst(g, "registry.example/a/path/of/many/parts/with-a-long-name-for-an-application", 3)
		}}},
	} {
		p, server := serve(t, s.scene, s.with...)
		if name != "empty" {
			past(&p.history)
		}
		for _, look := range []struct {
			name  string
			width int
			dark  bool
		}{{"wide", 1280, false}, {"narrow", 390, false}, {"dark", 1280, true}} {
			t.Run(name+"-"+look.name, func(t *testing.T) {
				b.t = t
				b.size(look.width, 900)
				b.dark(look.dark)
				b.visit(server.URL + "/shoal/")
				require.Empty(t, b.said, "the browser complains")
				require.LessOrEqual(t, b.value("document.documentElement.scrollWidth"), float64(look.width),
					"nothing is wider than the window")
				require.GreaterOrEqual(t, b.value(contrast), 4.5, "text can be read")
				b.shoot(name + "-" + look.name)
			})
		}
	}
}

// contrast is the least contrast of a text with what is behind it, by the formula of WCAG 2.
const contrast = `(() => {
  const rgb = (s) => s.match(/[\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
    return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let least = 21;
  for (const e of document.querySelectorAll("p,td,th,dt,dd,h1,h2,h3,a,small,strong,code,button,span:not([aria-hidden])")) {
    if (!e.textContent.trim() || !e.offsetParent) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
    least = Math.min(least, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  }
  return least;
})()`

//nolint:paralleltest // one browser at a time is enough for a small machine
func TestBrowser_WorksByKeyboard(t *testing.T) {
	b := open(t)
	_, server := serve(t, scene(30, 2, "node"), pinned)
	b.size(1280, 900)
	b.visit(server.URL + "/")
	const focused = `(document.activeElement.id || document.activeElement.className || document.activeElement.textContent)`
	b.press("Tab")
	require.Equal(t, "skip", b.value(focused), "the first stop leads past the head")
	b.press("Enter")
	require.Equal(t, "content", b.value(focused))
	b.value(`document.activeElement.blur()`)
	seen := map[string]bool{}
	for range 60 {
		b.press("Tab")
		seen[fmt.Sprint(b.value(focused))] = true
		if b.value(focused) == "pause" {
			b.press(" ")
			require.Equal(t, "true", b.value(`document.activeElement.getAttribute("aria-pressed")`), "it pauses")
			b.press(" ")
		}
	}
	for _, stop := range []string{"pause", "scroll"} {
		require.True(t, seen[stop], "%s is reached by Tab: %v", stop, seen)
	}
	require.Equal(t, true, b.value(`(() => { const i = document.querySelector(".filter input"); i.value = "node-017";
		i.dispatchEvent(new Event("input")); return document.querySelectorAll("#node-table tbody tr:not([hidden])").length === 1; })()`),
		"the filter leaves one node")
}

//nolint:paralleltest // one browser at a time is enough for a small machine
func TestBrowser_DrawsAnewWhatHasChangedAndKeepsTheReadersPlace(t *testing.T) {
	b := open(t)
	p, server := serve(t, scene(3, 1, "node"))
	past(&p.history)
	b.size(1280, 900)
	b.visit(server.URL + "/")
	require.Equal(t, false, b.value(`document.body.textContent.includes("docker.io/library/late")`))
	b.value(`document.getElementById("steps").open = true`)
	g := scene(3, 1, "node")
	burst(g, "docker.io/library/late", 1)
	p.gather.mu.Lock()
	p.gather.last = g
	p.gather.mu.Unlock()
	b.until(`document.body.textContent.includes("docker.io/library/late")`)
	require.Equal(t, true, b.value(`document.getElementById("steps").open`), "what the reader has opened stays open")
	server.Close()
	b.until(`document.getElementById("fresh").textContent.includes("does not answer")`)
	require.Equal(t, true, b.value(`document.body.textContent.includes("docker.io/library/late")`), "what it said stays")
}
