# What building Daybook needs beyond Swift; sourced by the tools. Installs only what is missing.

requirements() {
  local package missing=()
  for package in libfuse3-dev fuse3 libblkid-dev libssl-dev pkg-config "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    echo "Please install: apt-get install ${missing[*]}" >&2
    return 1
  fi
  echo "Installing ${missing[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
}

swift_or_explain() {
  command -v swift >/dev/null || { echo "Swift 6.2 or newer is needed: see https://www.swift.org/install" >&2; return 1; }
}
