# shellcheck shell=bash disable=SC2034
# Sourced by every script of this folder: the versions, the places, and the container engine in use.
# Nothing is started or written here.

# What the cluster is made of. The node image and the tools are keyed by these, so a changed line rebuilds what hangs on it.
KIND_VERSION=0.33.0
KUBE_VERSION=1.36.3
ETCD_VERSION=3.6.8
COREDNS_VERSION=1.14.2
PAUSE_VERSION=3.10.2
CONTAINERD_VERSION=2.4.2
CRICTL_VERSION=1.36.0
HELM_VERSION=4.3.1
VERSITYGW_VERSION=1.8.0
# kind 0.33.0's own default, used where a registry can be reached.
PUBLISHED_NODE=kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5

CLUSTER=serin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${SERIN_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serin-cluster}
TOOLS=$CACHE/bin          # kind, kubectl, helm, versitygw
NODEBIN=$CACHE/nodebin    # what goes into the node image
RUN=$CACHE/run            # sockets, pid files, kubeconfig: the state of what runs now
LOGS=$CACHE/log           # one file per step

on_path() { case :$PATH: in *:"$1":*) ;; *) return 1 ;; esac; }
on_path "$TOOLS" || PATH=$TOOLS:$PATH
for dir in /usr/local/go/bin /usr/local/sbin /usr/sbin /sbin; do on_path $dir || PATH=$PATH:$dir; done
export PATH

# The Debian release of this machine: what is built here runs on a base of the same release.
SUITE=$(. /etc/os-release 2>/dev/null; echo "${VERSION_CODENAME:-bookworm}")

# debian_sources: this machine's own package sources, whatever mirror they name.
debian_sources() { cat /etc/apt/sources.list.d/debian.sources 2>/dev/null || grep -E '^deb .*debian' /etc/apt/sources.list; }

# "existing" leaves the user's kubeconfig in force; every other cluster has one of its own.
if [ "${E2E_CLUSTER:-}" != existing ]; then export KUBECONFIG=$RUN/kubeconfig; fi

# The engine that `engine` has chosen. For a cluster of the user's own the choice is another one: it only builds images.
ENGINE_FILE=$RUN/engine${E2E_CLUSTER:+-$E2E_CLUSTER}

# use_engine: point the container client at the engine that `engine` has chosen (docker, podman or private).
use_engine() {
  ENGINE=$(cat "$ENGINE_FILE" 2>/dev/null) || ENGINE=
  CLIENT=docker
  case $ENGINE in
    podman) CLIENT=podman; export KIND_EXPERIMENTAL_PROVIDER=podman ;;
    private)
      # BuildKit is not in Debian's 20.10 engine. The configuration folder keeps the user's logins out of it.
      export DOCKER_HOST=unix://$RUN/docker.sock DOCKER_CONFIG=$RUN/docker-config DOCKER_BUILDKIT=0
      on_path "$CACHE/docker/usr/bin" || PATH=$CACHE/docker/usr/bin:$PATH ;;
  esac
}
use_engine

die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# as_root COMMAND...: for what only root may do; on a machine where we are not root, sudo asks.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
