#include "cmd/stasis/engine_options.h"

namespace stasis::cli {
namespace {

// For those who know CRIU: what is so without it.
void Accept(CLI::App& group, const std::string& name, const std::string& help) {
  group.add_flag(name)->description(help);
}

}  // namespace

void AddEngineOptions(CLI::App& command, engine::Options& options) {
  CLI::Option_group& group = *command.add_option_group("state", "As criu(8) has them");
  group.add_flag("--tcp-established", options.tcp_established,
                 "Established TCP connections go on (else they come back as after a reset)");
  group.add_flag("--tcp-close", options.tcp_close,
                 "Established TCP connections come back as after a reset, whatever the checkpoint "
                 "has");
  group.add_flag("--skip-in-flight", options.skip_in_flight,
                 "Connections that were not accepted yet are left out");
  group.add_flag("--ext-unix-sk,-x", options.ext_unix_sk,
                 "Unix sockets connected to a process outside the tree: datagram ones by the "
                 "peer's path, others are severed");
  group
      .add_option("--ghost-limit", options.ghost_limit,
                  "Largest deleted file that is saved: bytes, or with K, M, G (no limit)")
      ->transform(CLI::AsSizeValue(false))
      ->option_text("SIZE");
  group
      .add_option("--external", options.external,
                  "KIND[THING]:NAME, what is outside; may be repeated")
      ->option_text("KEY");
  Accept(group, "--file-locks", "File locks are kept (they always are)");
  Accept(group, "--link-remap", "Deleted files with other names are kept (they always are)");
  Accept(group, "--shell-job,-j", "The tree has a shell's terminal (found out unasked)");
}

}  // namespace stasis::cli
