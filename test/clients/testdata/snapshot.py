"""Downloads a model by the requests of huggingface_hub's snapshot_download, with the library that it used until 1.0."""
import concurrent.futures, os, sys, urllib.parse
import requests

endpoint, (model, folder) = os.environ["HF_ENDPOINT"], sys.argv[1:]
session = requests.Session()
agent = {"User-Agent": "unknown/None; hf_hub/0.36.2; python/3"}


def ask(method, path, **more):
    headers = agent | more.pop("headers", {})
    answer = session.request(method, endpoint + path, headers=headers, timeout=10, **more)
    answer.raise_for_status()
    return answer


info = ask("GET", f"/api/models/{model}/revision/main").json()
commit = info["sha"]


def download(name):
    path = f"/{model}/resolve/{commit}/{urllib.parse.quote(name)}"
    head = ask("HEAD", path, headers={"Accept-Encoding": "identity"}, allow_redirects=False)
    assert head.headers["X-Repo-Commit"] == commit, "the resource does not seem to be on a hub"
    etag = (head.headers.get("X-Linked-Etag") or head.headers["ETag"]).strip('"')
    size = int(head.headers.get("X-Linked-Size") or head.headers["Content-Length"])
    assert etag and "X-Xet-Hash" not in head.headers
    target = os.path.join(folder, name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as out:
        half = size // 2  # as if it had broken off there
        with ask("GET", path, stream=True) as answer:
            for piece in answer.iter_content(64 << 10):
                out.write(piece[: half - out.tell()])
                if out.tell() >= half:
                    break
        if size:
            with ask("GET", path, stream=True, headers={"Range": f"bytes={out.tell()}-"}) as answer:
                for piece in answer.iter_content(10 << 20):
                    out.write(piece)
        assert out.tell() == size, f"{name} is of {out.tell()} bytes, not {size}"


with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(download, [f["rfilename"] for f in info["siblings"]]))
