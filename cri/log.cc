#include "cri/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>

namespace stasis::log {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> kLogger = [] {
    auto made = spdlog::stderr_logger_mt("stasis");
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
    return made;
  }();
  return *kLogger;
}

// Quoted unless it is one plain word: a value may hold anything, a forged log line among it.
std::string Quoted(std::string_view value) {
  const auto plain = [](char c) {
    return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != '=';
  };
  if (!value.empty() && std::all_of(value.begin(), value.end(), plain)) {
    return std::string(value);
  }
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '\n') {
      quoted += "\\n";
    } else if (c == '"' || c == '\\') {
      (quoted += '\\') += c;
    } else {
      quoted += (static_cast<unsigned char>(c) < ' ' || c == 0x7f) ? '?' : c;
    }
  }
  return quoted + '"';
}

void Write(spdlog::level::level_enum level, std::string_view message,
           std::initializer_list<Field> fields) {
  if (!Logger().should_log(level)) return;
  std::string line(message);
  for (const Field& field : fields) {
    ((line += ' ') += field.key) += '=';
    line += Quoted(field.value);
  }
  Logger().log(level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace

bool SetLevel(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") return false;
  Logger().set_level(parsed);
  return true;
}

void Debug(std::string_view message, std::initializer_list<Field> fields) {
  Write(spdlog::level::debug, message, fields);
}
void Info(std::string_view message, std::initializer_list<Field> fields) {
  Write(spdlog::level::info, message, fields);
}
void Warn(std::string_view message, std::initializer_list<Field> fields) {
  Write(spdlog::level::warn, message, fields);
}
void Error(std::string_view message, std::initializer_list<Field> fields) {
  Write(spdlog::level::err, message, fields);
}

}  // namespace stasis::log
