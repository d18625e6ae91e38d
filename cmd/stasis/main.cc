// stasis: checkpoints and restores trees of processes, and handles their archives.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cmd/stasis/commands.h"

namespace stasis::cli {

int Report(const Status& status) {
  if (status.ok()) return kOk;
  std::fprintf(stderr, "stasis: %s\n", OneLine(Message(status)).c_str());
  return kFailure;
}

std::string JsonText(const nlohmann::json& json) {
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string OneLine(const std::string& text) {
  std::string printable;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    printable += byte < 0x20 || byte == 0x7f ? '?' : c;
  }
  return printable;
}

CLI::Validator NotEmpty() {
  return {[](const std::string& value) { return value.empty() ? "must not be empty" : ""; }, ""};
}

Progress::Progress(std::string what) : what_(std::move(what)), terminal_(::isatty(2) != 0) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void Progress::operator()(std::uint64_t done_bytes, std::uint64_t total_bytes) {
  if (!terminal_ || total_bytes == 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  shown_ = true;
  std::fprintf(stderr, "\r%s: %s of %s (%d%%)", what_.c_str(), Bytes(done_bytes).c_str(),
               Bytes(total_bytes).c_str(),
               static_cast<int>(std::min(done_bytes, total_bytes) * 100 / total_bytes));
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

Result<std::unique_ptr<archive::Archive>> OpenArchive(const std::string& path) {
  Progress progress("decompressing");
  archive::OpenOptions options;
  options.progress = std::ref(progress);
  return archive::Archive::Open(path, options);
}

std::string ProgramBeside(const std::string& name) {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).replace_filename(name);
}

std::string PlaceholderProgram() { return ProgramBeside("stasis-placeholder"); }

std::string PageServerProgram() { return ProgramBeside("stasis-pages"); }

}  // namespace stasis::cli

// What no one catches ends the program, with its words on standard error (std::terminate).
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  using namespace stasis::cli;
  CLI::App program("Checkpoints and restores running processes and containers.", "stasis");
  program.set_version_flag("--version", STASIS_VERSION);
  program.require_subcommand(1);
  program.footer(
      "Exit codes: 0 it worked, 1 it did not (the reason is on standard error), 2 usage, 128 and\n"
      "a signal's number when that signal ended it. `stasis restore` passes on its program's.");
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
