#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the container runtime of a node call the plugin, and keeps it so. A reconciler: run it at any time, any number of times. Killed or
# without power at any moment it leaves the old state or the new one, and pods start in both.
#
# This file decides; `egressctl cni` does what is done to files. Needed besides: bash, coreutils and diffutils.
set -euo pipefail
export LC_ALL=C

usage() {
  cat <<'END'
bootstrap.sh install|uninstall|status|watch [OPTIONS]

  install      the plugin into the runtime's folder, then its entry into the network that pods get
  uninstall    the entry out of every network; the plugin stays for pods that are still to be removed
  status       whether both are there, as this version wants them, whether there is a configuration to go by, and which
               pods came up without
  watch        install, and again whenever somebody undoes it; waits for the primary CNI without end

  --way WAY         edit: in the primary CNI's list (a single plugin's .conf is always done by `own`)
                    own: in a copy of that list which the runtime finds first, and which stays when the primary's is rewritten
                    drop-in: NET.D/NETWORK/50-egressclass.conf (containerd 2.1, CRI-O 1.33, or newer)
                    auto (default): `own` where the platform writes its list anew at each start (k3s, RKE2, microk8s), else
                    `edit`; but a list or drop-in of our own that is there stays
  --entry FILE      the entry (default: /etc/egressclass/entry.json if there is one)
  --plugin FILE     the plugin to install
  --conf-dir DIR    the runtime's net.d and its folder of plugins (default: as the runtime's configuration says, else what
  --bin-dir DIR     is usual on this platform)
  --runtime NAME    containerd or crio: whose rules say which network pods get
  --root DIR        the node's file system, when that is not /
  --wait SECONDS    install: how long to wait for the primary CNI's file (default: 60)
  --give-up N       watch: stop when the entry was taken out N times within a minute (default: 8)
  --purge           uninstall: the plugin too, unless running pods were made with it
  --dry-run         show what would change, as a diff, and change nothing
  --json            for machines: one object; of watch, one in each line

Each option has a variable, EGRESSCLASS_CONF_DIR for --conf-dir.
Exit codes: 0 done, or all as it should be; 1 failed; 2 refused, or called wrongly; 3 the primary CNI has written no network yet;
4 the runtime cannot load what it has written; 5 status: something is not as it should be; 6 status: not installed;
7 watch: somebody keeps taking the entry out.
END
}

readonly REFUSED=2 NO_NETWORK=3 BROKEN=4 STALE=5 FOUGHT=7     # 5 and 6 of an entry are egressctl's
self=$(readlink -f "$0")
here=$(dirname "$self")

way=${EGRESSCLASS_WAY:-auto}
entry=${EGRESSCLASS_ENTRY:-}
plugin=${EGRESSCLASS_PLUGIN:-}
asked_conf=${EGRESSCLASS_CONF_DIR:-}
asked_bin=${EGRESSCLASS_BIN_DIR:-}
runtime=${EGRESSCLASS_RUNTIME:-}
root=${EGRESSCLASS_ROOT:-}
patience=${EGRESSCLASS_WAIT:-60}
give_up=${EGRESSCLASS_GIVE_UP:-8}
purge=${EGRESSCLASS_PURGE:-}
dry_run=${EGRESSCLASS_DRY_RUN:-}
json=${EGRESSCLASS_JSON:-}

# --- what is said ------------------------------------------------------------------------------------------------------

notes=()
problem=

json_string() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "${text//[[:cntrl:]]/?}"
}

json_list() {
  local item comma=
  for item; do
    printf '%s%s' "$comma" "$(json_string "$item")"
    comma=,
  done
}

# Something was done, or is waited for. A message may have many lines.
note() {
  if [ -z "$json" ]; then
    printf '%s\n' "$1"
  elif [ "$command" = watch ]; then
    printf '{"message":%s}\n' "$(json_string "$1")"
  else
    notes+=("$1")
  fi
}

# die CODE MESSAGE
die() {
  problem=$2
  [ -n "$json" ] || printf 'bootstrap: %s\n' "$2" >&2
  exit "$1"
}

finish() {
  local code=$?
  [ -z "${EVENTS_PID:-}" ] || kill "$EVENTS_PID" 2>/dev/null || true
  [ -n "$json" ] && [ -z "${reported:-}" ] || return 0
  printf '{"command":"%s","code":%d,"dryRun":%s,"did":[%s],"problem":%s}\n' "$command" "$code" \
    "$([ -n "$dry_run" ] && echo true || echo false)" "$(json_list "${notes[@]}")" \
    "$([ -n "$problem" ] && json_string "$problem" || echo null)"
}

# --- where things are --------------------------------------------------------------------------------------------------

# The first of the files that is there.
first_file() {
  local file
  for file; do
    [ -f "$file" ] && printf '%s' "$file" && return
  done
  return 1
}

find_runtime() {
  if [ -n "$runtime" ]; then
    [[ $runtime = containerd || $runtime = crio ]] || die $REFUSED "--runtime is containerd or crio, and not '$runtime'"
  elif [ -S "$root/run/crio/crio.sock" ] || { [ -d "$root/etc/crio" ] && [ ! -S "$root/run/containerd/containerd.sock" ]; }; then
    runtime=crio
  else
    runtime=containerd
  fi
}

# Two lines: where the runtime's own configuration has networks and plugins; blank where it does not say.
configured_folders() {
  local file files dump
  if [ "$runtime" = crio ]; then
    files=("$root/etc/crio/crio.conf" "$root"/etc/crio/crio.conf.d/*)
  elif file=$(first_file "$root"/var/lib/rancher/{k3s,rke2}/agent/etc/containerd/config.toml \
    "$root/var/snap/microk8s/current/args/containerd.toml" "$root/etc/containerd/config.toml"); then
    files=("$file")
  else
    files=("$root"/etc/containerd/conf.d/*.toml)
  fi
  # containerd itself knows best what it makes of its files. The platforms have another one inside.
  if [ "${files[0]}" = /etc/containerd/config.toml ] &&
    dump=$(timeout 10 containerd --config "${files[0]}" config dump 2>/dev/null); then
    "$egressctl" cni folders <<<"$dump"
  else
    "$egressctl" cni folders --root "$root" "${files[@]}"
  fi
}

# Where platforms have their folders: conf_dir, bin_dir. Which platform it is says the first conf_dir that exists.
PLATFORMS='
/var/lib/rancher/k3s/agent/etc/cni/net.d /var/lib/rancher/k3s/data/cni
/var/snap/microk8s/current/args/cni-network /var/snap/microk8s/current/opt/cni/bin
/etc/cni/multus/net.d /var/lib/cni/bin
/etc/cni/net.mk /opt/cni/bin
/etc/cni/net.d /opt/cni/bin'

know_platform() {
  local conf="" bin=""
  # A k3s that says nothing of CNI has no flannel, and means what is usual everywhere.
  if ! first_file "$root"/var/lib/rancher/{k3s,rke2}/agent/etc/containerd/config.toml >/dev/null; then
    while read -r conf bin; do
      [ -n "$conf" ] && [ -d "$root$conf" ] && break
    done <<<"$PLATFORMS"
  fi
  usual_conf=${conf:-/etc/cni/net.d}
  usual_bin=${bin:-/opt/cni/bin}
}

# Platforms that write the primary's list anew at each start: an entry in it would be missing until the watch has seen
# that, and a list of our own is there all the time.
know_way() {
  default_way=edit
  case ${conf_dir#"$root"} in
    */agent/etc/cni/net.d | /var/snap/microk8s/*) default_way=own ;;
  esac
  [ ! -d "$root/var/lib/rancher/k3s/agent" ] && [ ! -d "$root/var/lib/rancher/rke2/agent" ] || default_way=own
}

find_folders() {
  local said configured=() usual_conf usual_bin
  if [ -z "$asked_conf" ] || [ -z "$asked_bin" ]; then
    said=$(configured_folders 2>&1) || die 1 "${said#egressctl: }"
    mapfile -t configured <<<"$said"
  fi
  know_platform
  conf_dir=$root${asked_conf:-${configured[0]:-$usual_conf}}
  bin_dir=$root${asked_bin:-${configured[1]:-$usual_bin}}
  know_way
}

find_files() {
  egressctl=$(first_file "$here/egressctl" "$here/../build/egressctl") || egressctl=$(type -P egressctl) ||
    die 1 "egressctl is neither beside this script nor in PATH"
  plugin=${plugin:-$(first_file "$here/../libexec/egressclass/egressclass" "$here/../build/egressclass" || true)}
  [ -f "$plugin" ] || [ "$command" = uninstall ] || die 1 "there is no plugin to install: build it, or name it with --plugin"
  entry=${entry:-$(first_file "$root/etc/egressclass/entry.json" || true)}
  cache=$root/var/lib/cni/results
}

# --- may it be done? ---------------------------------------------------------------------------------------------------

call_plugin() {
  local file=$1 verb=$2
  env -i "CNI_COMMAND=$verb" "CNI_PATH=$bin_dir" "$file"
}

# A plugin that does not run, or an entry that it would refuse, keeps every pod from starting.
check_plugin() {
  local request answer
  versions=$(call_plugin "$plugin" VERSION </dev/null 2>&1) || die $REFUSED "$plugin does not run on this machine: $versions"
  request=$("$egressctl" cni entry ${entry:+--entry "$entry"} 2>&1) || die $REFUSED "$request"
  answer=$(call_plugin "$plugin" STATUS <<<"$request" 2>/dev/null) && return
  # From 50 on it is the node that is not ready, and not the entry that is wrong.
  if [[ ! $answer =~ \"code\":([0-9]+) ]] || ((BASH_REMATCH[1] < 50)); then
    die $REFUSED "the plugin refuses the entry: $answer"
  fi
}

# check_version NAME MAJOR MINOR: of a runtime that can be asked
check_version() {
  local said
  if [ -n "$root" ] || ! said=$("$1" --version 2>/dev/null) || [[ ! $said =~ ([0-9]+)\.([0-9]+) ]]; then
    note "cannot tell the version of $1: make sure that it is $2.$3 or newer, or the plugin is never called"
  elif ((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2] < $2 * 1000 + $3)); then
    die $REFUSED "$1 ${BASH_REMATCH[1]}.${BASH_REMATCH[2]} does not look for drop-ins, $2.$3 is the first that does: use another --way"
  fi
}

check_way() {
  [[ $way =~ ^(auto|edit|own|drop-in)$ ]] || die $REFUSED "--way is auto, edit, own or drop-in, and not '$way'"
  [ "$way" = drop-in ] || return 0
  if [ "$runtime" = crio ]; then check_version crio 1 33; else check_version containerd 2 1; fi
}

# --- the two steps -----------------------------------------------------------------------------------------------------

target() { printf '%s/egressclass' "$bin_dir"; }

same_plugin() { cmp -s "$plugin" "$(target)" && [ -x "$(target)" ]; }

# Sets `said` to what was done; nothing when all was well.
place_plugin() {
  said=
  if [ -n "$dry_run" ]; then
    same_plugin || said="Files $(target) and $plugin differ"
    return 0
  fi
  said=$(mkdir -p "$bin_dir" 2>&1 && "$egressctl" cni plugin "$plugin" "$(target)" 2>&1) || return
  [ -z "$said" ] || call_plugin "$(target)" VERSION </dev/null >/dev/null 2>&1 || {
    said="$(target) is in place, but does not run there: is the file system mounted noexec?"
    return $REFUSED
  }
}

place_entry() {
  said=$("$egressctl" cni install --folder "$conf_dir" --runtime "$runtime" --way "$way" --default-way "$default_way" ${entry:+--entry "$entry"} \
    --plugin-versions "$versions" ${dry_run:+--dry-run} 2>&1)
}

# An entry whose plugin is not there would keep pods from starting: hence this order, and the reverse in uninstall.
install_plugin() {
  place_plugin || die $? "$said"
  [ -z "$said" ] || note "$said"
}

install_entry() {
  local code deadline=$((SECONDS + patience))
  while true; do
    code=0
    place_entry || code=$?
    if [[ $code != "$NO_NETWORK" && $code != "$BROKEN" ]] || ((SECONDS >= deadline)) || [ -n "$dry_run" ]; then break; fi
    sleep 0.2
  done
  ((code == 0)) || die $code "${said#egressctl: }"
  [ -z "$said" ] || note "$said"
}

# --- commands ----------------------------------------------------------------------------------------------------------

run_install() {
  check_way
  check_plugin
  install_plugin
  install_entry
}

run_uninstall() {
  local said code=0
  said=$("$egressctl" cni uninstall --folder "$conf_dir" --runtime "$runtime" ${dry_run:+--dry-run} 2>&1) || code=$?
  ((code == 0)) || die $code "${said#egressctl: }"
  [ -z "$said" ] || note "$said"
  if [ -n "$purge" ]; then remove_plugin; fi
}

remove_plugin() {
  local pods
  [ -e "$(target)" ] || return 0
  pods=$(status_of_entry --json) || true
  [[ $pods == *'"podsWith":[]'* ]] ||
    die $REFUSED "the entry is out, but $(target) stays: running pods were made with it, and CRI-O calls it when they end (\`status --json\` names them)"
  if [ -n "$dry_run" ]; then
    note "Only in $bin_dir: egressclass"
    return
  fi
  sleep 2 # the runtime needs a moment to see that the entry is gone, and pods that start in it call the plugin
  said=$(rm -f "$(target)" 2>&1 && sync "$bin_dir" 2>&1) || die 1 "$said"
  note "removed $(target)"
}

status_of_entry() {
  "$egressctl" cni status --folder "$conf_dir" --runtime "$runtime" --way "$way" --default-way "$default_way" ${entry:+--entry "$entry"} \
    --plugin-versions "${versions:-}" --cache "$cache" --root "$root" "$@"
}

state_of_plugin() {
  if [ ! -e "$(target)" ]; then echo missing; elif same_plugin; then echo current; else echo stale; fi
}

# The plugin asks it for each pod: without it, no pod has a class.
state_of_configuration() {
  if [ -e "$root/run/egressclass/classes.json" ]; then
    echo applied
  elif [ -e "$root/etc/egressclass/config.json" ]; then
    echo unapplied
  else
    echo absent
  fi
}

show_configuration() {
  printf 'config    %s: %s\n' "$root/etc/egressclass/config.json" "$1"
  case $1 in
    absent) echo '          no configuration on this node: pods start without a class' ;;
    unapplied) echo "          pods with a class do not start: run \`egressctl apply\`" ;;
  esac
}

run_status() {
  local state text code=0 configuration
  configuration=$(state_of_configuration)
  versions=$(call_plugin "$plugin" VERSION </dev/null 2>&1) || die $REFUSED "$plugin does not run on this machine: $versions"
  state=$(state_of_plugin)
  text=$(status_of_entry 2>&1) || code=$?
  [ $code != 0 ] || [ "$state" = current ] || code=$STALE
  if [ -n "$json" ]; then
    reported=yes
    printf '{"code":%d,"plugin":{"file":%s,"state":"%s"},"configuration":"%s","conflist":%s}\n' "$code" \
      "$(json_string "$(target)")" "$state" "$configuration" "$(status_of_entry --json 2>/dev/null || true)"
  else
    printf 'plugin    %s: %s\n%s\n' "$(target)" "$state" "$text"
    show_configuration "$configuration"
  fi
  exit "$code"
}

# --- watch -------------------------------------------------------------------------------------------------------------

# Before the first look at the folders: what changes after it is not missed.
start_watching() {
  local line
  coproc EVENTS { exec "$egressctl" cni watch "$conf_dir" "$bin_dir"; }
  read -r -t 10 -u "${EVENTS[0]}" line || line=
  [ "$line" = ready ] || die 1 "cannot watch $conf_dir"
}

# Or half a minute, for whatever no event tells of; less while there is nothing yet.
await_change() {
  local code=0
  read -r -t "$1" -u "${EVENTS[0]}" || code=$?
  ((code == 0 || code > 128)) || die 1 "the watch on $conf_dir ended"
}

# A platform makes its folders when it starts for the first time, and an upgrade may move them: where they are, it writes
# before its list.
follow_platform() {
  local before=$conf_dir:$bin_dir:$default_way events=${EVENTS_PID:-}
  find_folders
  [ "$before" != "$conf_dir:$bin_dir:$default_way" ] || return 0
  note "the runtime looks in $conf_dir and $bin_dir now"
  kill "$events" || true
  wait "$events" 2>/dev/null || true
  exec "$self" "${words[@]}"
}

# Says a state that lasts once.
note_once() {
  [ "$1" = "${last_note:-}" ] || note "$1"
  last_note=$1
}

reconcile() {
  local code=0 done_so_far
  place_plugin || code=$?
  done_so_far=$said
  if ((code == 0)); then
    place_entry || code=$?
    [ -z "$done_so_far" ] || [ $code != 0 ] || said=$done_so_far${said:+$'\n'$said}
  fi
  return $code
}

readonly BACK_OFF=(0 0 0.2 0.4 0.8 1.6 3.2 5)

# Everybody who undoes it is answered, later and later; who does not give up is named, and left alone. Sets `pause`.
count_fight() {
  local now=$SECONDS time kept=()
  for time in "${undone[@]}" "$now"; do
    ((now - time >= 60)) || kept+=("$time")
  done
  undone=("${kept[@]}")
  if ((${#undone[@]} >= give_up)); then
    die $FOUGHT "somebody keeps undoing this, ${#undone[@]} times within a minute: another agent takes care of $conf_dir.$(
      hint_at_rival) This watch stops; the next time, pods start without the plugin"
  fi
  pause=${BACK_OFF[${#undone[@]} < ${#BACK_OFF[@]} ? ${#undone[@]} : -1]}
}

hint_at_rival() {
  compgen -G "$conf_dir/*cilium*" >/dev/null || return 0
  printf ' Cilium is here: set cni.exclusive=false.'
}

run_watch() {
  local code pause undone=() installed=
  check_way
  check_plugin
  start_watching
  trap 'exit 0' TERM INT # an end of the watch is no uninstall
  while true; do
    code=0 pause=0
    reconcile || code=$?
    if ((code != 0)); then
      note_once "${said#egressctl: }"
    else
      if [ -n "$said" ]; then
        last_note=
        note "$said"
        [ -z "$installed" ] || count_fight
      fi
      [ -n "$installed" ] || note "installed; watching $conf_dir and $bin_dir"
      installed=yes
    fi
    sleep "$pause"
    follow_platform # after what is urgent: it takes a moment
    await_change $((${#installed} > 0 ? 30 : 2))
  done
}

# --- the command line --------------------------------------------------------------------------------------------------

parse() {
  command=
  while (($# > 0)); do
    case $1 in
      --dry-run) dry_run=yes ;;
      --json) json=yes ;;
      --purge) purge=yes ;;
      -h | --help) usage && exit ;;
      --way | --entry | --plugin | --conf-dir | --bin-dir | --runtime | --root | --wait | --give-up)
        (($# > 1)) || die $REFUSED "$1 needs a value"
        case $1 in
          --way) way=$2 ;;
          --entry) entry=$2 ;;
          --plugin) plugin=$2 ;;
          --conf-dir) asked_conf=$2 ;;
          --bin-dir) asked_bin=$2 ;;
          --runtime) runtime=$2 ;;
          --root) root=$2 ;;
          --wait) patience=$2 ;;
          --give-up) give_up=$2 ;;
        esac
        shift
        ;;
      install | uninstall | status | watch)
        [ -z "$command" ] || die $REFUSED "one command at a time: $command, or $1?"
        command=$1
        ;;
      *) die $REFUSED "what is '$1'? --help shows the commands and options" ;;
    esac
    shift
  done
  [ -n "$command" ] || die $REFUSED "which command? --help shows them"
  [[ $patience$give_up =~ ^[0-9]{2,12}$ ]] || die $REFUSED "--wait and --give-up are numbers"
  [[ ${asked_conf:-/} =~ ^/ && ${asked_bin:-/} =~ ^/ ]] || die $REFUSED "--conf-dir and --bin-dir begin with /"
  root=${root%/}
  [ "$command" != watch ] || [ -z "$dry_run" ] || die $REFUSED "watch makes changes: there is no --dry-run of it"
}

command=
readonly words=("$@")
trap finish EXIT
parse "$@"
find_runtime
find_files
find_folders
"run_$command"
