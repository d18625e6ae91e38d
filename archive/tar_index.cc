#include "archive/tar_index.h"

#include <optional>
#include <span>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "archive/member_name.h"
#include "archive/tar_format.h"

namespace stasis::archive {
namespace {

constexpr std::uint64_t kMaxPaxHeader = std::uint64_t{1} << 20;

std::string_view TypeText(char type) {
  switch (type) {
    case '1':
      return "a hard link";
    case '2':
      return "a symbolic link";
    case '3':
      return "a character device";
    case '4':
      return "a block device";
    case '6':
      return "a FIFO";
    case 'S':
      return "a sparse file";
    default:
      return "of an unknown type";
  }
}

/// Walks the headers of one tar.
class Walk {
 public:
  Walk(const ReadTarCall& read, std::uint64_t size, std::uint64_t max_members)
      : read_(read), size_(size), max_members_(max_members) {}

  Result<TarIndex> Run() {
    while (true) {
      ASSIGN_OR_RETURN(const TarHeader header, ReadHeader());
      if (IsZeroBlock(header)) break;
      RETURN_IF_ERROR(CheckHeader(header));
      RETURN_IF_ERROR(TakeEntry(header));
    }
    if (override_name_ || override_size_)
      return DataLoss("the archive ends within a member's headers");
    RETURN_IF_ERROR(ReadEndMark());
    index_.end = position_;
    return std::move(index_);
  }

 private:
  Result<TarHeader> ReadHeader() {
    TarHeader header;
    if (size_ - position_ < sizeof(header)) {
      return DataLoss("the archive is cut short at byte " + std::to_string(size_) +
                      ": no end mark; copy it anew from where it came");
    }
    RETURN_IF_ERROR(read_(std::as_writable_bytes(std::span(&header, 1)), position_));
    position_ += sizeof(header);
    return header;
  }

  /// pax(1) wants two zero blocks; one alone at the very end is what some writers leave.
  Status ReadEndMark() {
    if (position_ == size_) return OkStatus();
    ASSIGN_OR_RETURN(const TarHeader second, ReadHeader());
    if (!IsZeroBlock(second)) {
      return DataLoss("a block of zeros amid the archive at byte " +
                      std::to_string(position_ - 2 * kTarBlock));
    }
    return OkStatus();
  }

  Status CheckHeader(const TarHeader& header) const {
    if (HasTarChecksum(header)) return OkStatus();
    const std::string at = std::to_string(position_ - kTarBlock);
    if (position_ == kTarBlock) return InvalidArgument("not a tar archive");
    return DataLoss("the header at byte " + at + " is damaged (its checksum is wrong)");
  }

  Status TakeEntry(const TarHeader& header) {
    const std::optional<std::uint64_t> own_size = ParseTarNumber(header.size);
    if (!own_size) return InvalidArgument("member \"" + Printable(TarName(header)) + "\": no size");
    if (header.type == kTarPax || header.type == kTarPaxGlobal) {
      ASSIGN_OR_RETURN(const std::string records, ReadSpecial(*own_size));
      return TakePax(records, header.type == kTarPaxGlobal);
    }
    if (header.type == kTarGnuLongName) {
      ASSIGN_OR_RETURN(std::string name, ReadSpecial(*own_size));
      override_name_ = name.substr(0, name.find('\0'));
      return OkStatus();
    }
    const std::string name = std::exchange(override_name_, {}).value_or(TarName(header));
    const std::uint64_t size = std::exchange(override_size_, {}).value_or(*own_size);
    return TakeMember(name, size, header.type);
  }

  Result<std::string> ReadSpecial(std::uint64_t size) {
    if (size > kMaxPaxHeader) return InvalidArgument("an extended header of over 1 MiB");
    RETURN_IF_ERROR(CheckFits(size, "an extended header"));
    std::string content(size, '\0');
    RETURN_IF_ERROR(
        read_(std::as_writable_bytes(std::span(content.data(), content.size())), position_));
    position_ += RoundUpToBlock(size);
    return content;
  }

  Status TakePax(const std::string& text, bool global) {
    ASSIGN_OR_RETURN(const auto records, ParsePaxRecords(text));
    for (const auto& [key, value] : records) {
      if (key.starts_with("GNU.sparse.")) return InvalidArgument("a sparse member");
      if (key != "path" && key != "size") continue;
      if (global) return InvalidArgument("a global header that gives members a " + key);
      if (key == "path") {
        override_name_ = value;
        continue;
      }
      std::uint64_t size = 0;
      for (const char digit : value) {
        if (digit < '0' || digit > '9' || size > size_) {
          return InvalidArgument("a member's size of \"" + Printable(value) + "\"");
        }
        size = size * 10 + static_cast<std::uint64_t>(digit - '0');
      }
      override_size_ = size;
    }
    return OkStatus();
  }

  Status TakeMember(std::string name, std::uint64_t size, char type) {
    if (name.starts_with("./")) name.erase(0, 2);
    const bool directory = type == kTarDirectory;
    if (directory && name.ends_with('/')) name.pop_back();
    if (directory && (name.empty() || name == ".")) return OkStatus();  // "./", the top itself
    RETURN_IF_ERROR(CheckMemberName(name));
    const std::string shown = "member \"" + Printable(name) + "\"";
    if (!directory && type != kTarRegular && type != kTarOldRegular) {
      return InvalidArgument(shown + " is " + std::string(TypeText(type)) +
                             "; a checkpoint holds regular files and folders only");
    }
    if (directory && size != 0) return InvalidArgument(shown + ": a folder with content");
    if (!names_.insert(name).second) return InvalidArgument(shown + " is there twice");
    if (names_.size() > max_members_) {
      return ResourceExhausted("over " + std::to_string(max_members_) + " members");
    }
    RETURN_IF_ERROR(CheckFits(size, shown));
    if (!directory) index_.files[std::move(name)] = {.offset = position_, .size = size};
    position_ += RoundUpToBlock(size);
    return OkStatus();
  }

  Status CheckFits(std::uint64_t size, const std::string& shown) const {
    if (size <= size_ - position_ && RoundUpToBlock(size) <= size_ - position_) return OkStatus();
    return DataLoss(shown + " has " + std::to_string(size) + " bytes, but the archive ends after " +
                    std::to_string(size_ - position_) + " of them: it is cut short or altered");
  }

  const ReadTarCall& read_;
  const std::uint64_t size_;
  const std::uint64_t max_members_;
  std::uint64_t position_ = 0;
  std::optional<std::string> override_name_;
  std::optional<std::uint64_t> override_size_;
  std::unordered_set<std::string> names_;
  TarIndex index_;
};

}  // namespace

Result<TarIndex> ReadTarIndex(const ReadTarCall& read, std::uint64_t size,
                              std::uint64_t max_members) {
  return Walk(read, size, max_members).Run();
}

}  // namespace stasis::archive
