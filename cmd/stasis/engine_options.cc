#include "cmd/stasis/engine_options.h"

#include <map>
#include <string>
#include <vector>

namespace stasis::cli {
namespace {

// For those who know CRIU: what is so without it.
void Accept(CLI::App& group, const std::string& name, const std::string& help) {
  group.add_flag(name)->description(help);
}

// CRIU's older word for mounts that are outside.
std::string ToExternal(const std::string& map) {
  if (map == "auto") return "mnt[]";
  const std::size_t colon = map.find(':');
  if (colon == std::string::npos) return "mnt[" + map + "]";
  return "mnt[" + map.substr(0, colon) + "]:" + map.substr(colon + 1);
}

}  // namespace

void AddEngineOptions(CLI::App& command, engine::Options& options) {
  CLI::Option_group& group = *command.add_option_group("state", "As criu(8) has them");
  group.add_flag("--tcp-established", options.tcp_established,
                 "Established TCP connections go on (else they come back as after a reset)");
  group.add_flag(
      "--tcp-close", options.tcp_close,
      "Established TCP connections come back closed (reads give 0), whatever the checkpoint has");
  group.add_flag("--skip-in-flight", options.skip_in_flight,
                 "Connections that were not accepted yet are left out");
  group.add_flag("--ext-unix-sk,-x", options.ext_unix_sk,
                 "Unix sockets connected to a process outside the tree: datagram ones by the "
                 "peer's path, others are severed");
  group
      .add_option("--ghost-limit", options.ghost_limit,
                  "Largest deleted file that is saved: bytes, or with K, M, G (256M)")
      ->transform(CLI::AsSizeValue(false))
      ->option_text("SIZE");
  group
      .add_option("--external", options.external,
                  "KIND[THING]:NAME, what is outside (mnt, veth, macvlan, netdev); may be repeated")
      ->option_text("KEY");
  group
      .add_option_function<std::vector<std::string>>(
          "--ext-mount-map",
          [&options](const std::vector<std::string>& maps) {
            for (const std::string& map : maps) options.external.push_back(ToExternal(map));
          },
          "As --external 'mnt[KEY]:NAME', 'auto' as --external 'mnt[]'; may be repeated")
      ->option_text("KEY:NAME");
  using Mode = engine::ManageCgroups;
  static const std::map<std::string, Mode> kModes = {
      {"ignore", Mode::kIgnore}, {"none", Mode::kNone}, {"props", Mode::kProps},
      {"soft", Mode::kSoft},     {"full", Mode::kFull}, {"strict", Mode::kStrict}};
  group
      .add_option_function<std::string>(
          "--manage-cgroups",
          [&options](const std::string& mode) {
            options.manage_cgroups = mode.empty() ? Mode::kSoft : kModes.at(mode);
          },
          "Cgroups of the tree's own: ignore, none, props, soft (the default), full, strict")
      ->option_text("[MODE]")
      ->expected(0, 1)
      ->check([](const std::string& mode) {
        return mode.empty() || kModes.contains(mode) ? "" : "no such mode: " + mode;
      });
  group
      .add_option("--cgroup-root", options.cgroup_root,
                  "On this host, cgroups come back below PATH; may be repeated")
      ->option_text("[CONTROLLERS:]/PATH");
  static std::vector<std::string> ignored;  // what these say is found out unasked
  group
      .add_option_function<std::string>(
          "--network-lock",
          [&options](const std::string& method) { options.lock_network = method != "skip"; },
          "Until the restore of a tree that a dump ends, its network namespace passes nothing, "
          "where that is not "
          "ours (by nf_tables, whatever METHOD is; without this, or with skip: only kept "
          "connections stand still)")
      ->option_text("METHOD")
      ->check(CLI::IsMember({"iptables", "nftables", "skip"}));
  group.add_option("--cgroup-yard", ignored, "Accepted: cgroups are found wherever they are")
      ->option_text("DIR");
  group
      .add_option("--irmap-scan-path", ignored, "Accepted: watched files are found by their inodes")
      ->option_text("DIR");
  Accept(group, "--force-irmap", "Accepted, as --irmap-scan-path");
  Accept(group, "--mntns-compat-mode,--no-mntns-compat-mode",
         "Accepted: mounts are made in their places, then share what is mounted");
  Accept(
      group, "--enable-external-masters,--enable-external-sharing",
      "Accepted: slaves of mounts outside are that again; peers of those get a group of their own");
  Accept(group, "--ghost-fiemap,--no-ghost-fiemap", "Accepted: holes are kept");
  Accept(group, "--file-locks", "File locks are kept (they always are)");
  Accept(group, "--link-remap", "Deleted files with other names are kept (they always are)");
  Accept(group, "--shell-job,-j", "The tree has a shell's terminal (found out unasked)");
}

}  // namespace stasis::cli
