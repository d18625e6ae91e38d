#include "cmd/stasis/log_file.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>

#include "cmd/stasis/commands.h"

namespace stasis::cli {
namespace {

constexpr int kMostVerbose = 4;

spdlog::level::level_enum LevelOf(engine::LogLevel level) {
  switch (level) {
    case engine::LogLevel::kError:
      return spdlog::level::err;
    case engine::LogLevel::kWarning:
      return spdlog::level::warn;
    case engine::LogLevel::kInfo:
      return spdlog::level::info;
    case engine::LogLevel::kDebug:
      break;
  }
  return spdlog::level::debug;
}

std::filesystem::path Place(const std::string& path, const std::string& folder) {
  return folder.empty() ? std::filesystem::path(path) : std::filesystem::path(folder) / path;
}

// "-v": one more; "-vvv": as many; "-v4": that one. -1 for anything else.
int Verbosity(const std::string& text, int now) {
  if (text.empty()) return std::min(now + 1, kMostVerbose);
  if (text.size() == 1 && text[0] >= '0' && text[0] <= '4') return text[0] - '0';
  if (text.find_first_not_of('v') != std::string::npos) return -1;
  return std::min(static_cast<int>(text.size()) + 1, kMostVerbose);
}

}  // namespace

void LogFile::AddOptions(CLI::App& command) {
  command
      .add_option("-o,--log-file", path_,
                  "Each step is written there, whatever the result; a relative name is below "
                  "--images-dir, if that is given")
      ->option_text("FILE")
      ->check(NotEmpty());
  command
      .add_option_function<std::vector<std::string>>(
          "-v,--verbosity",
          [this](const std::vector<std::string>& levels) {
            for (const std::string& level : levels) verbosity_ = Verbosity(level, verbosity_);
          },
          "Of the log: 1 errors, 2 warnings, 3 steps (the default), 4 all; -v, -vv, -v4. Without "
          "--log-file it goes to standard error")
      ->option_text("[LEVEL]")
      ->expected(0, 1)
      ->check(
          [](const std::string& level) { return Verbosity(level, 0) < 0 ? "must be 0 to 4" : ""; });
}

Status LogFile::Open(const std::string& folder) {
  if (path_.empty() && verbosity_ == 0) return OkStatus();
  try {
    spdlog::sink_ptr sink;
    if (path_.empty()) {
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    } else {
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(Place(path_, folder), true);
    }
    logger_ = std::make_shared<spdlog::logger>("stasis", std::move(sink));
  } catch (const spdlog::spdlog_ex& error) {
    return FailedPrecondition(std::string("the log file: ") + error.what());
  }
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::off, spdlog::level::err,
                                                   spdlog::level::warn, spdlog::level::info,
                                                   spdlog::level::debug};
  logger_->set_level(verbosity_ == 0 ? spdlog::level::info
                                     : kLevels[static_cast<std::size_t>(verbosity_)]);
  logger_->flush_on(spdlog::level::debug);  // whoever reads it wants to know how far we came
  logger_->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l: %v");
  return OkStatus();
}

engine::Log::Hear LogFile::Hear() const {
  if (!logger_) return nullptr;
  return [logger = logger_](engine::LogLevel level, const std::string& text) {
    logger->log(LevelOf(level), OneLine(text));
  };
}

void LogFile::Warn(const std::vector<std::string>& notes) const {
  if (!logger_) return;
  for (const std::string& note : notes) logger_->warn(OneLine(note));
}

void LogFile::End(const Status& result, const std::string& success) const {
  if (!logger_) return;
  if (result.ok()) {
    logger_->info(success);
  } else {
    logger_->error(OneLine(Message(result)));
  }
}

}  // namespace stasis::cli
