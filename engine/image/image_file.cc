#include "engine/image/image_file.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <array>
#include <optional>

#include "engine/image/schema/files.pb.h"
#include "engine/image/schema/io_uring.pb.h"
#include "engine/image/schema/sockets.pb.h"

namespace stasis::engine {
namespace {

// Every normal file of img_version 2 begins with kCommonMagic and its type's; a service file with
// kServiceMagic and its type's; the inventory with its own alone.
constexpr std::uint32_t kCommonMagic = 0x54564319;
constexpr std::uint32_t kServiceMagic = 0x55105940;

// No message that we know comes near it; what is longer is no image of ours or CRIU's.
constexpr std::uint32_t kRecordLimitBytes = std::uint32_t{64} << 20;

enum class Framing { kNormal, kInventory, kService };

struct Type {
  std::string_view name;
  std::uint32_t magic;
  Framing framing = Framing::kNormal;
  bool hexadecimal_key = false;
};

constexpr auto kTypes = std::to_array<Type>({
    {"inventory", 0x58313116, Framing::kInventory},
    {"pstree", 0x50273030},
    {"core", 0x55053847},
    {"ids", 0x54432030},
    {"mm", 0x57492820},
    {"fs", 0x51403912},
    {"fdinfo", 0x56213732},
    {"files", 0x56303138},
    {"pagemap", 0x56084025},
    {"pagemap-shmem", 0x56084025},
    {"remap-fpath", 0x59133954},
    {"ghost-file", 0x52583605, Framing::kNormal, true},
    {"memfd", 0x48453499},
    {"pipes-data", 0x56453709},
    {"fifo-data", 0x59333054},
    {"sk-queues", 0x56264026},
    {"tcp-stream", 0x51465506, Framing::kNormal, true},
    {"bpfmap-data", 0x64324033},
    {"tty-info", 0x59453036},
    {"tty-data", 0x59413026},
    {"filelocks", 0x54323616},
    {"seccomp", 0x64413049},
    {"apparmor", 0x59423047},
    {"cgroup", 0x59383330},
    {"mountpoints", 0x55563928},
    {"autofs", 0x49353943},
    {"utsns", 0x54473203},
    {"ipcns-var", 0x53115007},
    {"ipcns-shm", 0x46283044},
    {"ipcns-msg", 0x55453737},
    {"ipcns-sem", 0x59573019},
    {"netns", 0x55933752},
    {"netdev", 0x57373951},
    {"userns", 0x55474906},
    {"pidns", 0x61157326},
    {"timens", 0x43114433},
    {"cpuinfo", 0x61404013},
    {"stasis-io-uring", 0x49525354},  // ours; CRIU does not look for it
    {"stats-dump", 0x57093306, Framing::kService},
    {"stats-restore", 0x57093306, Framing::kService},
});

const Type* FindType(std::string_view name) {
  const auto found = std::ranges::find(kTypes, name, &Type::name);
  return found == kTypes.end() ? nullptr : &*found;
}

// The framing's integers are little-endian.
std::string Word(std::uint32_t value) {
  std::string bytes(4, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(value & 0xff);
    value >>= 8;
  }
  return bytes;
}

// How many raw bytes follow a record of `type`.
Result<std::uint64_t> RawLength(std::string_view type, const std::string& message) {
  if (type == "pipes-data" || type == "fifo-data") {
    image::PipeDataEntry entry;
    if (!entry.ParsePartialFromString(message)) return DataLoss("a record does not parse");
    return entry.bytes();
  }
  if (type == "sk-queues") {
    image::SkPacketEntry entry;
    if (!entry.ParsePartialFromString(message)) return DataLoss("a record does not parse");
    return entry.length();
  }
  if (type == "bpfmap-data") {
    image::BpfmapDataEntry entry;
    if (!entry.ParsePartialFromString(message)) return DataLoss("a record does not parse");
    return std::uint64_t{entry.keys_bytes()} + entry.values_bytes();
  }
  if (type == "stasis-io-uring") {
    image::IoUringEntry entry;
    if (!entry.ParsePartialFromString(message)) return DataLoss("a record does not parse");
    return std::uint64_t{entry.ring_bytes()} + entry.entries_bytes();
  }
  return 0;
}

}  // namespace

std::string ImageName(std::string_view type) {
  const Type* const known = FindType(type);
  const bool service = known != nullptr && known->framing == Framing::kService;
  return std::string(type) + (service ? "" : ".img");
}

std::string ImageName(std::string_view type, std::uint64_t key) {
  const Type* const known = FindType(type);
  const bool hexadecimal = known != nullptr && known->hexadecimal_key;
  const std::string digits = hexadecimal ? absl::StrCat(absl::Hex(key)) : absl::StrCat(key);
  return std::string(type) + "-" + digits + ".img";
}

std::string_view ImageType(std::string_view name) {
  if (name.ends_with(".img")) name.remove_suffix(4);
  const Type* known = FindType(name);
  if (known == nullptr) known = FindType(name.substr(0, std::min(name.rfind('-'), name.size())));
  return known == nullptr ? std::string_view() : known->name;
}

ImageFileBuilder::ImageFileBuilder(std::string_view type) {
  const Type* const known = FindType(type);
  if (known == nullptr) return;  // a raw file
  if (known->framing == Framing::kNormal) bytes_ += Word(kCommonMagic);
  if (known->framing == Framing::kService) bytes_ += Word(kServiceMagic);
  bytes_ += Word(known->magic);
}

Status ImageFileBuilder::Add(const google::protobuf::MessageLite& message) {
  // proto2: the serializer aborts on an unset required field in debug builds and writes it out in
  // others.
  if (!message.IsInitialized()) {
    return Internal(message.GetTypeName() + " lacks " + message.InitializationErrorString());
  }
  AddRecord(message.SerializeAsString());
  return OkStatus();
}

void ImageFileBuilder::AddRecord(std::string_view message) {
  bytes_ += Word(static_cast<std::uint32_t>(message.size()));
  bytes_ += message;
  ++records_;
}

Status PutOne(ImageSink& sink, std::string_view name, std::string_view type,
              const google::protobuf::MessageLite& message) {
  ImageFileBuilder file(type);
  RETURN_IF_ERROR(file.Add(message));
  return sink.Put(name, file.bytes());
}

Result<ImageFileReader> ImageFileReader::Open(const ImageSource& source, std::string_view name,
                                              std::string_view type) {
  const Type* const known = FindType(type);
  if (known == nullptr) return Internal("no image type " + std::string(type));
  ASSIGN_OR_RETURN(std::string bytes, source.Get(name));
  ImageFileReader reader(std::string(name), std::move(bytes));

  const Status strange =
      InvalidArgument(reader.name_ + " is not an image of type " + std::string(type) +
                      ": it does not begin with that type's magic");
  if (known->framing != Framing::kInventory) {
    const Result<std::uint32_t> common = reader.Word();
    const bool service = known->framing == Framing::kService;
    if (!common.ok() || *common != (service ? kServiceMagic : kCommonMagic)) return strange;
  }
  const Result<std::uint32_t> magic = reader.Word();
  if (!magic.ok() || *magic != known->magic) return strange;
  return reader;
}

Result<std::uint32_t> ImageFileReader::Word() {
  ASSIGN_OR_RETURN(const std::string_view bytes, Raw(4));
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

Result<std::string_view> ImageFileReader::Record() {
  ASSIGN_OR_RETURN(const std::uint32_t length, Word());
  if (length > kRecordLimitBytes) {
    return DataLoss(
        absl::StrCat(name_, ": a record of ", length, " bytes at offset ", offset_ - 4));
  }
  return Raw(length);
}

Status ImageFileReader::Record(google::protobuf::MessageLite& message) {
  const std::size_t start = offset_;
  ASSIGN_OR_RETURN(const std::string_view bytes, Record());
  // Parsed partially, for the library would log a missing required field to stderr.
  if (!message.ParsePartialFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      !message.IsInitialized()) {
    return DataLoss(absl::StrCat(name_, ": no ", message.GetTypeName(), " at offset ", start));
  }
  return OkStatus();
}

Result<std::string_view> ImageFileReader::Raw(std::uint64_t length) {
  if (length > bytes_.size() - offset_) {
    return DataLoss(absl::StrCat(name_, " ends early: ", length, " bytes were expected at offset ",
                                 offset_, ", ", bytes_.size() - offset_, " are there"));
  }
  const std::string_view bytes = std::string_view(bytes_).substr(offset_, length);
  offset_ += length;
  return bytes;
}

std::string_view ImageFileReader::Rest() {
  const std::string_view bytes = std::string_view(bytes_).substr(offset_);
  offset_ = bytes_.size();
  return bytes;
}

Result<std::vector<ImageRecord>> ReadImageRecords(const ImageSource& source, std::string_view name,
                                                  std::string_view type) {
  std::vector<ImageRecord> records;
  Result<ImageFileReader> reader = ImageFileReader::Open(source, name, type);
  if (reader.status().code() == StatusCode::kNotFound) return records;
  RETURN_IF_ERROR(reader.status());
  while (!reader->AtEnd()) {
    ImageRecord& record = records.emplace_back();
    ASSIGN_OR_RETURN(record.message, reader->Record());
    const Result<std::uint64_t> length = RawLength(type, record.message);
    RETURN_IF_ERROR(Annotate(length.status(), name));
    ASSIGN_OR_RETURN(record.bytes, reader->Raw(*length));
  }
  return records;
}

}  // namespace stasis::engine
