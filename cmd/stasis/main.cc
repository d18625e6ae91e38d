// stasis: checkpoints and restores trees of processes, and handles their archives.
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>

#include "cmd/stasis/commands.h"

namespace stasis::cli {

int Report(const Status& status) {
  if (status.ok()) return kOk;
  std::fprintf(stderr, "stasis: %s\n", Message(status).c_str());
  return kFailure;
}

Progress::Progress(std::string what) : what_(std::move(what)), terminal_(::isatty(2) != 0) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void Progress::operator()(std::uint64_t done_bytes, std::uint64_t total_bytes) {
  if (!terminal_ || total_bytes == 0) return;
  shown_ = true;
  std::fprintf(stderr, "\r%s: %s of %s (%d%%)", what_.c_str(), Bytes(done_bytes).c_str(),
               Bytes(total_bytes).c_str(), static_cast<int>(done_bytes * 100 / total_bytes));
}

std::string Bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) value /= 1024, ++unit;
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

std::string PlaceholderProgram() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error)
      .replace_filename("stasis-placeholder");
}

}  // namespace stasis::cli

int main(int argc, char** argv) {
  using namespace stasis::cli;
  CLI::App program("Checkpoints and restores running processes and containers.", "stasis");
  program.set_version_flag("--version", STASIS_VERSION);
  program.require_subcommand(1);
  program.footer(
      "Exit codes: 0 it worked, 1 it did not (the reason is on standard error), 2 usage.");
  int exit_code = kOk;
  AddCheckpoint(program, exit_code);
  AddRestore(program, exit_code);
  AddInspect(program, exit_code);
  AddVerify(program, exit_code);
  AddImage(program, exit_code);
  AddCheck(program, exit_code);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? kOk : kUsage;
  }
  return exit_code;
}
