"""Small real files of many types, made here: what the demo and the load send to magika.

In: nothing, except /bin/true for a real ELF. Out: {file name: bytes}. Deterministic but for that ELF.
"""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

PYTHON = '''#!/usr/bin/env python3
"""Counts the words of a text file."""

import collections
import sys


def count(path):
    counter = collections.Counter()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            counter.update(word.lower() for word in line.split() if word.isalpha())
    return counter


if __name__ == "__main__":
    for word, times in count(sys.argv[1]).most_common(10):
        print(f"{times:6d}  {word}")
'''

C = r'''#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A ring buffer of lines: keeps the last `capacity` of a stream. */
struct ring {
	char **lines;
	size_t capacity, next;
};

static int ring_push(struct ring *ring, const char *line)
{
	char *copy = strdup(line);
	if (copy == NULL)
		return -ENOMEM;
	free(ring->lines[ring->next]);
	ring->lines[ring->next] = copy;
	ring->next = (ring->next + 1) % ring->capacity;
	return 0;
}

int main(int argc, char **argv)
{
	struct ring ring = { .capacity = argc > 1 ? strtoul(argv[1], NULL, 10) : 10 };
	char line[4096];

	ring.lines = calloc(ring.capacity, sizeof(*ring.lines));
	if (ring.lines == NULL)
		return EXIT_FAILURE;
	while (fgets(line, sizeof(line), stdin) != NULL)
		if (ring_push(&ring, line) != 0)
			return EXIT_FAILURE;
	for (size_t i = 0; i < ring.capacity; i++) {
		const char *kept = ring.lines[(ring.next + i) % ring.capacity];
		if (kept != NULL)
			fputs(kept, stdout);
	}
	return EXIT_SUCCESS;
}
'''

RUST = '''//! A token bucket: how many requests may pass now.

use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    pub fn new(burst: f64, per_second: f64, now: Instant) -> Self {
        Self { tokens: burst, burst, per_second, filled: now }
    }

    /// Takes one token, or says how long to wait for it.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let elapsed = now.duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.per_second))
    }
}
'''

SHELL = '''#!/bin/sh
# Keeps the newest seven backups of a directory.
set -eu

source="${1:?usage: $0 SOURCE TARGET}"
target="${2:?usage: $0 SOURCE TARGET}"
mkdir -p "$target"
tar -C "$source" -czf "$target/backup-$(date +%Y%m%d-%H%M%S).tar.gz" .
ls -1t "$target"/backup-*.tar.gz | tail -n +8 | while read -r old; do
    echo "removing $old" >&2
    rm -f -- "$old"
done
'''

HTML = '''<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Finches of the garden</title>
  <link rel="stylesheet" href="style.css">
</head>
<body>
  <h1>Finches of the garden</h1>
  <table>
    <thead><tr><th>Name</th><th>Length</th><th>Song</th></tr></thead>
    <tbody>
      <tr><td><a href="/serin">Serin</a></td><td>11.5 cm</td><td>a fast, jingling trill</td></tr>
      <tr><td><a href="/siskin">Siskin</a></td><td>12 cm</td><td>twitters with a wheeze at the end</td></tr>
    </tbody>
  </table>
  <script>document.querySelector("h1").addEventListener("click", () => alert("tsirr"));</script>
</body>
</html>
'''

JSON = '''{
  "name": "garden",
  "version": 3,
  "finches": [
    {"name": "serin", "length_cm": 11.5, "colours": ["yellow", "streaked"], "canary": false},
    {"name": "canary", "length_cm": 12.5, "colours": ["yellow"], "canary": true},
    {"name": "siskin", "length_cm": 12.0, "colours": ["green", "black"], "canary": false}
  ],
  "seen": {"2026-03-14": 4, "2026-03-15": 7, "2026-03-16": null}
}
'''

YAML = '''apiVersion: v1
kind: ConfigMap
metadata:
  name: garden
  labels:
    app.kubernetes.io/name: garden
data:
  feeder.conf: |
    seeds = sunflower, niger
    refill = 06:30
  limit: "12"
---
apiVersion: v1
kind: Service
metadata:
  name: garden
spec:
  selector:
    app.kubernetes.io/name: garden
  ports:
    - name: http
      port: 80
      targetPort: 8080
'''

SQL = '''CREATE TABLE birds (
    id integer PRIMARY KEY,
    name varchar(64) NOT NULL,
    seen_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
INSERT INTO birds (id, name) VALUES (1, 'serin'), (2, 'siskin'), (3, 'canary');
CREATE INDEX birds_by_time ON birds (seen_at DESC);
SELECT name, count(*) AS times
FROM birds
WHERE seen_at > '2026-01-01'
GROUP BY name
HAVING count(*) > 1
ORDER BY times DESC;
'''

AUTHORS = '''The Garden Project
==================

Maintainers:
  Ann Finch <ann@garden.example>
  Bo Siskin <bo@garden.example>

Drawings are under CC-BY-SA 4.0, see http://creativecommons.org/licenses/by-sa/4.0/
'''


def csv() -> bytes:
    lines = ["date,station,temperature,humidity,wind"]
    for day in range(1, 29):
        lines.append(f"2026-02-{day:02d},garden,{day * 37 % 11 - 2}.{day % 10},{60 + day * 13 % 35},{day * 7 % 9}.5")
    return "\n".join(lines).encode() + b"\n"


def png() -> bytes:
    """A picture of 32 × 32 pixels, red to the right and green downwards."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 32
    rows = b"".join(
        b"\0" + b"".join(bytes((x * 8, y * 8, 64)) for x in range(size)) for y in range(size)
    )
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pdf() -> bytes:
    """One page with one line of text, its cross-reference table right."""
    text = b"BT /F1 24 Tf 72 720 Td (A serin is a finch.) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        size, table, size, len(out),
    )


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in {"README.txt": "Birds of the garden.\n" * 20, "count.csv": csv().decode()}.items():
            out.writestr(zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def wav() -> bytes:
    """A fifth of a second of a triangle tone, 8,000 samples a second."""
    samples = b"".join(struct.pack("<h", abs(i % 20 - 10) * 3000 - 15000) for i in range(1600))
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def files() -> dict[str, bytes]:
    """Every sample, by file name."""
    return {
        "words.py": PYTHON.encode(),
        "ring.c": C.encode(),
        "bucket.rs": RUST.encode(),
        "backup.sh": SHELL.encode(),
        "finches.html": HTML.encode(),
        "garden.json": JSON.encode(),
        "garden.yaml": YAML.encode(),
        "birds.sql": SQL.encode(),
        "weather.csv": csv(),
        "gradient.png": png(),
        "page.pdf": pdf(),
        "birds.zip": archive(),
        "weather.csv.gz": gzip.compress(csv(), mtime=0),
        "tone.wav": wav(),
        # On these two the generations differ: the older one takes go.mod for Verilog.
        "AUTHORS": AUTHORS.encode(),
        "go.mod": b"module garden\n\ngo 1.22\n",
        "true": Path("/bin/true").read_bytes(),
    }
