#include "archive/tar_format.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

namespace stasis::archive {
namespace {

constexpr std::uint64_t kOctalSizeLimit = std::uint64_t{1} << 33;  // eleven octal digits

/// Octal digits that fill the field but for a closing NUL.
void PutOctal(std::span<char> field, std::uint64_t value) {
  for (std::size_t at = field.size() - 1; at-- > 0; value >>= 3) {
    field[at] = static_cast<char>('0' + (value & 7));
  }
  field.back() = '\0';
}

void PutBase256(std::span<char> field, std::uint64_t value) {
  for (std::size_t at = field.size(); at-- > 0; value >>= 8) {
    field[at] = static_cast<char>(value & 0xff);
  }
  field[0] = static_cast<char>(0x80);
}

/// The sum of all bytes, those of the checksum itself taken as blanks.
std::uint64_t Checksum(const TarHeader& header) {
  TarHeader blanked = header;
  std::memset(blanked.checksum, ' ', sizeof(blanked.checksum));
  std::array<unsigned char, kTarBlock> bytes;
  std::memcpy(bytes.data(), &blanked, bytes.size());
  std::uint64_t sum = 0;
  for (const unsigned char byte : bytes) sum += byte;
  return sum;
}

std::string_view TextOf(std::span<const char> field) {
  return {field.data(), ::strnlen(field.data(), field.size())};
}

std::optional<std::uint64_t> ParseBase256(std::span<const char> field) {
  if ((field[0] & 0x7f) != 0) return std::nullopt;  // negative, or wider than any file
  std::uint64_t value = 0;
  for (const char byte : field.subspan(1)) {
    if (value >> 55 != 0) return std::nullopt;
    value = value << 8 | static_cast<unsigned char>(byte);
  }
  return value;
}

void SetChecksum(TarHeader& header) {
  // Six digits, a NUL and a blank: the one field with that ending (tar(5)).
  PutOctal(std::span(header.checksum).first(7), Checksum(header));
  header.checksum[7] = ' ';
}

}  // namespace

TarHeader MakeTarHeader(std::string_view name, char type, std::uint64_t size, unsigned mode,
                        std::int64_t mtime) {
  TarHeader header = {};
  name.copy(header.name, sizeof(header.name));
  PutOctal(header.mode, mode);
  PutOctal(header.uid, 0);
  PutOctal(header.gid, 0);
  PutOctal(header.mtime, static_cast<std::uint64_t>(std::max<std::int64_t>(mtime, 0)));
  header.type = type;
  std::memcpy(header.magic, "ustar", sizeof(header.magic));
  std::memcpy(header.version, "00", sizeof(header.version));
  PutOctal(header.dev_major, 0);
  PutOctal(header.dev_minor, 0);
  SetTarSize(header, size);
  return header;
}

void SetTarSize(TarHeader& header, std::uint64_t size) {
  if (size < kOctalSizeLimit) {
    PutOctal(header.size, size);
  } else {
    PutBase256(header.size, size);
  }
  SetChecksum(header);
}

bool HasTarChecksum(const TarHeader& header) {
  return ParseTarNumber(header.checksum) == Checksum(header);
}

bool IsZeroBlock(const TarHeader& header) {
  static constexpr TarHeader kZero = {};
  return std::memcmp(&header, &kZero, sizeof(header)) == 0;
}

std::optional<std::uint64_t> ParseTarNumber(std::span<const char> field) {
  if ((field[0] & 0x80) != 0) return ParseBase256(field);
  std::string_view text = TextOf(field);
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  std::uint64_t value = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '7') return std::nullopt;
    value = value << 3 | static_cast<std::uint64_t>(digit - '0');  // at most 12 digits
  }
  return value;
}

std::string TarName(const TarHeader& header) {
  const std::string_view name = TextOf(header.name);
  // GNU tar ends its magic with a blank and keeps other things where ustar has the prefix.
  const bool is_ustar = std::memcmp(header.magic, "ustar", sizeof(header.magic)) == 0;
  if (!is_ustar || header.prefix[0] == '\0') return std::string(name);
  return std::string(TextOf(header.prefix)) + "/" + std::string(name);
}

std::string PaxRecord(std::string_view key, std::string_view value) {
  const std::size_t rest = key.size() + value.size() + 3;  // blank, '=' and newline
  std::size_t length = rest + 1;
  while (rest + std::to_string(length).size() != length) ++length;
  return std::to_string(length) + " " + std::string(key) + "=" + std::string(value) + "\n";
}

std::string PaxComment(std::size_t length) {
  const std::string start = std::to_string(length) + " comment=";
  return start + std::string(length - start.size() - 1, ' ') + "\n";
}

Result<std::map<std::string, std::string>> ParsePaxRecords(std::string_view records) {
  std::map<std::string, std::string> values;
  while (!records.empty()) {
    const std::size_t blank = records.find(' ');
    const std::string_view digits = records.substr(0, blank);
    std::uint32_t length = 0;
    if (blank == std::string_view::npos || blank > 10 ||
        !absl::SimpleAtoi(absl::string_view(digits.data(), digits.size()), &length) ||
        length > records.size() || length < blank + 3 || records[length - 1] != '\n') {
      return InvalidArgument("a malformed pax header");
    }
    const std::string_view record = records.substr(blank + 1, length - blank - 2);
    const std::size_t equals = record.find('=');
    if (equals == 0 || equals == std::string_view::npos) {
      return InvalidArgument("a pax record without a key");
    }
    values[std::string(record.substr(0, equals))] = record.substr(equals + 1);
    records.remove_prefix(length);
  }
  return values;
}

}  // namespace stasis::archive
