"""What is done to the finished pages: nothing is fetched from elsewhere, no link leads nowhere, and a phone
shows figures that can be read."""
import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

KATEX = "0.16.11"
CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist")
FONTS = re.compile(r"@import\s*url\([^)]*fonts\.googleapis[^)]*\);?")


def drop_fonts(site: Path) -> None:
    "Take the themes' web fonts out; the pages use those of the reader's system."
    for path in site.rglob("*.css"):
        text = path.read_text()
        if FONTS.search(text):
            path.write_text(FONTS.sub("", text))


FOREIGN_IMAGE = re.compile(r'<img(?=[^>]*\bsrc="https?:)[^>]*>')


def name_foreign_images(site: Path) -> None:
    """Pictures that other hosts serve, such as badges, become their texts: a page fetches nothing from
    elsewhere."""
    def text(image: re.Match) -> str:
        alt = re.search(r'\balt="([^"]*)"', image[0])
        return alt[1] if alt else ""
    for path in site.rglob("*.html"):
        page = path.read_text()
        if FOREIGN_IMAGE.search(page):
            path.write_text(FOREIGN_IMAGE.sub(text, page))


PICTURE = re.compile(r'<img\b(?P<attributes>[^>]*?)\bsrc="(?P<source>[^"]+)"')
READABLE = 75  # pixels for an inch of a figure: a text of 8 points is then 8 pixels high
PHONE = 400  # up to so many a figure is shown as a whole, in the 350 that a phone has


def widen_figures(site: Path) -> None:
    "Tell the style sheet how wide a figure must be for its text to be read; a phone scrolls to the rest."
    for path in site.rglob("*.html"):
        page = path.read_text()
        wide = PICTURE.sub(lambda image: widened(image, path.parent), page)
        if wide != page:
            path.write_text(wide)


def widened(image: re.Match, folder: Path) -> str:
    "The start of an `img` tag, with its width on a phone if that is more than a phone has."
    shown = round(READABLE*inches_across(image["source"], folder))
    if shown <= PHONE:
        return image[0]
    return f'<img class="wide" style="--readable: {shown}px"{image["attributes"]}src="{image["source"]}"'


def inches_across(source: str, folder: Path) -> float:
    "How wide matplotlib drew a picture, which lies in the page itself or in a file; 0 for drawings (SVG)."
    if source.startswith("data:"):
        kind, _, text = source.partition(";base64,")
        picture = io.BytesIO(base64.b64decode(text))
    else:
        kind, picture = source, folder/unquote(source)
    if not kind.endswith(("png", "jpeg", "jpg")) or (isinstance(picture, Path) and not picture.exists()):
        return 0
    with Image.open(picture) as image:
        return float(image.width/image.info.get("dpi", (200, 200))[0])


def vendor_katex(site: Path, cache: Path) -> bool:
    "Serve KaTeX from the site itself, if npm can bring it (kept in `cache`). True if it is served so."
    dist = cache/"node_modules"/"katex"/"dist"
    if not dist.exists() and shutil.which("npm"):
        quiet = ["--silent", "--no-audit", "--no-fund"]
        subprocess.run(["npm", "install", *quiet, "--prefix", str(cache), f"katex@{KATEX}"])
    if not dist.exists():
        return False
    fonts = [f"fonts/{p.name}" for p in dist.glob("fonts/*.woff2")]
    for name in ["katex.min.css", "katex.min.js", "contrib/auto-render.min.js", *fonts]:
        new = site/"site_libs"/"katex"/name
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dist/name, new)
    for path in site.rglob("*.html"):
        up = "../"*(len(path.relative_to(site).parts) - 1)
        path.write_text(CDN.sub(f"{up}site_libs/katex", path.read_text()))
    return True


class Links(HTMLParser):
    "The ids of a page, what it links to, what it fetches to be shown, and its pictures without a text."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.fetched, self.twice = set(), set(), set(), set()
        self.unnamed = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        "Note one tag."
        found = dict(attrs)
        name = found.get("id")
        if name in self.ids and not name.startswith("T_"):  # pandas' tables come with ids of their own
            self.twice.add(name)
        if name:
            self.ids.add(name)
        if tag == "a" and found.get("name"):
            self.ids.add(found["name"])
        if tag == "img" and not found.get("alt"):
            self.unnamed += 1
        targets = [found[k] for k in ("href", "src") if found.get(k)]
        here = {t for t in targets if not t.startswith(("data:", "javascript:"))}
        self.links |= here
        shown = tag in ("script", "img", "iframe")
        if shown or (tag == "link" and found.get("rel") in ("stylesheet", "icon")):
            self.fetched |= here


def broken(site: Path) -> list[str]:
    "A line for each link inside the site that leads nowhere, and for each id that a page has twice."
    site = site.resolve()
    found = {path: Links(path.read_text()) for path in sorted(site.rglob("*.html"))}
    out = []
    for page, facts in found.items():
        name = page.relative_to(site)
        problems = [trouble(link, page, found) for link in sorted(facts.links)]
        out += [f"{name}: {problem}" for problem in problems if problem]
        out += [f"{name}: two places are called #{twice}" for twice in sorted(facts.twice)]
    return out


def trouble(link: str, page: Path, found: dict[Path, Links]) -> str | None:
    "What is wrong with a link on a page, or None."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent/unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return f"{link} does not exist"
    if parts.fragment and target in found and unquote(parts.fragment) not in found[target].ids | {"", "top"}:
        return f"{link}: no such place on that page"
    return None


def unnamed_pictures(site: Path) -> dict[str, int]:
    "How many pictures without a text (`fig-alt`) a page has; pages without any are left out."
    paths = sorted(site.rglob("*.html"))
    pages = {path.relative_to(site).as_posix(): Links(path.read_text()) for path in paths}
    return {name: page.unnamed for name, page in pages.items() if page.unnamed}


def fetched_elsewhere(site: Path) -> list[str]:
    "A line for each script, style, font or picture that a page or style sheet takes from another host."
    out = []
    for path in sorted(site.rglob("*.html")):
        links = sorted(Links(path.read_text()).fetched)
        out += [f"{path.relative_to(site)}: {link}" for link in links if urlsplit(link).netloc]
    for path in sorted(site.rglob("*.css")):
        urls = re.findall(r"url\(['\"]?(https?:[^)'\"]+)|@import\s+['\"](https?:[^'\"]+)", path.read_text())
        out += [f"{path.relative_to(site)}: {a or b}" for a, b in urls]
    return out
