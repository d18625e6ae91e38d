// Log lines with fields, on standard error: time, level, message, then key=value for a program to
// read.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

namespace stasis::log {

struct Field {
  std::string_view key;
  std::string value;
};

/// "debug", "info", "warn" or "error"; false: no such level.
bool SetLevel(std::string_view level);

void Debug(std::string_view message, std::initializer_list<Field> fields = {});
void Info(std::string_view message, std::initializer_list<Field> fields = {});
void Warn(std::string_view message, std::initializer_list<Field> fields = {});
void Error(std::string_view message, std::initializer_list<Field> fields = {});

}  // namespace stasis::log
