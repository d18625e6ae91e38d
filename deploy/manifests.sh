#!/usr/bin/env bash
# Writes FOLDER/stasis.yaml and FOLDER/uninstall.yaml from the chart's default values. Usage: manifests.sh HELM FOLDER
set -euo pipefail
helm=$1 folder=$2
here=$(dirname "$(readlink -f "$0")")

render() { "$helm" template stasis "$here/../charts/stasis" --namespace stasis "$@" | grep -v 'managed-by: Helm\|helm\.sh/'; }

{
  cat <<'HEAD'
# Made by `./dev manifests` from charts/stasis, whose values.yaml says what can be set. Do not edit.
# Before `kubectl delete -f` of this, put the nodes back by uninstall.yaml.
---
apiVersion: v1
kind: Namespace
metadata:
  name: stasis
  labels:
    # The pods write files of their node: the strictest of the levels that allows that.
    pod-security.kubernetes.io/enforce: privileged
HEAD
  render --no-hooks
} >"$folder/stasis.yaml"
{
  echo '# Made by `./dev manifests` from charts/stasis. Puts every node back as it was; done when its Job is:'
  echo '#   kubectl -n stasis wait --for=condition=complete --timeout=5m job/stasis-uninstall'
  render --show-only templates/uninstall.yaml | sed '/^  annotations:$/d'
} >"$folder/uninstall.yaml"
