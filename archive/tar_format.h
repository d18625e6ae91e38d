// Headers of the ustar and pax interchange formats, in both directions.
// Source: pax(1) in POSIX.1-2017, "ustar Interchange Format" and "pax Extended Header"; tar(5) for
// GNU tar's additions (base-256 numbers, types 'K' and 'L').
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace stasis::archive {

inline constexpr std::uint64_t kTarBlock = 512;

inline constexpr char kTarRegular = '0';
inline constexpr char kTarOldRegular = '\0';  // before ustar
inline constexpr char kTarDirectory = '5';
inline constexpr char kTarPax = 'x';        // records for the next member
inline constexpr char kTarPaxGlobal = 'g';  // records for all members that follow
inline constexpr char kTarGnuLongName = 'L';

struct TarHeader {
  char name[100];
  char mode[8];
  char uid[8];
  char gid[8];
  char size[12];
  char mtime[12];
  char checksum[8];
  char type;
  char link[100];
  char magic[6];
  char version[2];
  char user[32];
  char group[32];
  char dev_major[8];
  char dev_minor[8];
  char prefix[155];
  char unused[12];
};
static_assert(sizeof(TarHeader) == kTarBlock);

inline std::uint64_t RoundUpToBlock(std::uint64_t size) {
  return (size + kTarBlock - 1) / kTarBlock * kTarBlock;
}

/// A sealed header owned by root. `name` longer than the field is cut: a pax record has it then.
TarHeader MakeTarHeader(std::string_view name, char type, std::uint64_t size, unsigned mode,
                        std::int64_t mtime);

/// Sets the size, base-256 where octal cannot hold it (from 8 GiB on), and the checksum.
void SetTarSize(TarHeader& header, std::uint64_t size);

bool HasTarChecksum(const TarHeader& header);
bool IsZeroBlock(const TarHeader& header);

/// An octal or base-256 number; unset when it is neither, negative, or above 2^63 - 1.
std::optional<std::uint64_t> ParseTarNumber(std::span<const char> field);

/// The name of a header: prefix and name joined, where the format is ustar.
std::string TarName(const TarHeader& header);

/// "LENGTH key=value\n", where LENGTH counts the whole record.
std::string PaxRecord(std::string_view key, std::string_view value);

/// A comment record of exactly `length` bytes, at least 16. Readers ignore it (pax(1), "comment").
std::string PaxComment(std::size_t length);

/// The records of a pax header; a later key wins. InvalidArgument when they are malformed.
Result<std::map<std::string, std::string>> ParsePaxRecords(std::string_view records);

}  // namespace stasis::archive
