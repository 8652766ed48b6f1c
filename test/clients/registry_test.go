package clients

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/hack/httpget"
)

// The account that private registries accept.
const (
	user     = "user"
	password = "secret"
)

// registry is a running docker-registry behind a gateway that counts.
type registry struct {
	// host is the name that the registry has in image references and in the agents' configuration, and nowhere else.
	host string
	// address is where images are pushed to; url is the gateway, where agents pull.
	address, url string
	private      bool

	sent  atomic.Int64 // bytes of blobs
	asked atomic.Int64 // requests for manifests and blobs
	slow  atomic.Bool  // blobs then go out at slowRate
	wish  atomic.Int32 // where not 0, the status of every answer, by which it wishes to be asked later
}

// slowRate is in bytes a second.
const slowRate = 2 * mib

// startRegistry starts a registry that lets everybody pull, or, with an auth section as docker-registry's configuration
// has it, those whom that lets.
func startRegistry(t *testing.T, host string, auth map[string]any) *registry {
	t.Helper()
	r := &registry{host: host, address: freeAddress(t), private: auth != nil}
	dir := t.TempDir()
	config := map[string]any{
		"version": "0.1",
		"log":     map[string]any{"level": "warn"},
		"storage": map[string]any{"filesystem": map[string]any{"rootdirectory": filepath.Join(dir, "data")}},
		"http":    map[string]any{"addr": r.address},
	}
	if auth != nil {
		config["auth"] = auth
	}
	text, err := yaml.Marshal(config)
	require.NoError(t, err)
	path := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	start(t, nil, func(ctx context.Context) error {
		_, err := httpget.Body(ctx, "http://"+r.address+"/")
		return err
	}, "docker-registry", "serve", path)

	r.url = r.gateway(t, "127.0.0.1:0")
	return r
}

// gateway starts a server on an address that passes on to the registry, and returns its URL.
func (r *registry) gateway(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	gateway := httptest.NewUnstartedServer(r.count(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http",
		Host: r.address})))
	require.NoError(t, gateway.Listener.Close())
	gateway.Listener = l
	gateway.Start()
	t.Cleanup(gateway.Close)
	return gateway.URL
}

// count counts what is asked for, and the bytes of blobs that go out.
func (r *registry) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if request.URL.Path != "/v2/" {
			r.asked.Add(1)
			if wish := int(r.wish.Load()); wish != 0 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(wish)
				return
			}
		}
		if request.Method == http.MethodGet && strings.Contains(request.URL.Path, "/blobs/") {
			w = countingWriter{w, request.Context(), r}
		}
		next.ServeHTTP(w, request)
	})
}

type countingWriter struct {
	http.ResponseWriter
	ctx context.Context
	r   *registry
}

func (w countingWriter) Write(b []byte) (int, error) {
	w.r.sent.Add(int64(len(b))) // before somebody can have them
	if w.r.slow.Load() {
		select {
		case <-time.After(time.Duration(len(b)) * time.Second / slowRate):
		case <-w.ctx.Done():
		}
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach what is below.
func (w countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// basic is docker-registry's configuration for the Basic scheme (RFC 7617).
func basic(t *testing.T) map[string]any {
	t.Helper()
	accounts, err := filepath.Abs("../../hack/cluster/private-registry.htpasswd")
	require.NoError(t, err)
	return map[string]any{"htpasswd": map[string]any{"realm": "clients", "path": accounts}}
}

// bearer starts a token service, and is docker-registry's configuration for the Bearer scheme with its tokens, as the
// registry's token authentication specification has it.
func bearer(t *testing.T) map[string]any {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokens"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	bundle := filepath.Join(t.TempDir(), "tokens.pem")
	require.NoError(t, os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		0o600))

	service := httptest.NewServer(tokenService{key, certificate})
	t.Cleanup(service.Close)
	// crane sends no credentials to an address that is a number and not the registry's own.
	realm := strings.Replace(service.URL, "127.0.0.1", "localhost", 1)
	return map[string]any{"token": map[string]any{
		"realm": realm, "service": "clients", "issuer": "tokens", "rootcertbundle": bundle,
	}}
}

// tokenService gives the account a token for whatever it asks.
type tokenService struct {
	key         *ecdsa.PrivateKey
	certificate []byte
}

func (s tokenService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	account, secret, _ := r.BasicAuth()
	if r.Method == http.MethodPost { // OAuth 2.0, which containerd tries first
		account, secret = r.PostForm.Get("username"), r.PostForm.Get("password")
	}
	if account != user || secret != password {
		http.Error(w, "wrong account", http.StatusUnauthorized)
		return
	}
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	granted := []access{}
	for _, scopes := range r.Form["scope"] {
		for scope := range strings.FieldsSeq(scopes) {
			if parts := strings.Split(scope, ":"); len(parts) >= 3 {
				last := len(parts) - 1
				granted = append(granted, access{parts[0], strings.Join(parts[1:last], ":"),
					strings.Split(parts[last], ",")})
			}
		}
	}
	now := time.Now()
	token, err := s.sign(map[string]any{
		"iss": "tokens", "aud": "clients", "sub": account, "access": granted, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 3600})
}

// sign makes a JSON web token (RFC 7519) with the algorithm ES256.
func (s tokenService) sign(claims map[string]any) (string, error) {
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": [][]byte{s.certificate}})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(header) + "." + encode(payload)
	sum := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return fmt.Sprintf("%s.%s", signed, encode(signature)), nil
}
