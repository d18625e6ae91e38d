// bpf(2): maps of the types hash and array behind the link "anon_inode:bpf-map".
//
// State    fdinfo: type, sizes, flags, whether it is frozen; by bpf(2) the name; the content, read by the
//          descriptor, once for all that have the map open
// Image    FD_BPFMAP for each open file, "bpfmap-data" for each map: all keys, then all values
// Restore  made by the process under restore (CAP_BPF, or kernel.unprivileged_bpf_disabled 0), filled by us
// Lost     that others use the map too: programs that are loaded, processes outside the tree. The report names
//          it. NUMA nodes
// Refused  other types, maps whose values the kernel knows inside of (BTF: locks, timers), of a network device
// Source   bpf(2), include/uapi/linux/bpf.h, kernel/bpf/syscall.c; tested on 6.18
// Rule     How a descriptor may be used (BPF_F_RDONLY) is in its own flags, and is none of the map's
#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/kept_files.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{64} << 20;  // of keys and values

bool Owns(const OpenFile& file) { return file.link == "anon_inode:bpf-map"; }

std::uint64_t AddressOf(const void* at) { return reinterpret_cast<std::uint64_t>(at); }

Result<int> Bpf(int command, bpf_attr& attributes, const char* what) {
  const long result = ::syscall(SYS_bpf, command, &attributes, sizeof(attributes));
  if (result < 0) return SyscallError(errno, what);
  return static_cast<int>(result);
}

Result<bpf_map_info> InfoOf(int fd) {
  bpf_map_info info = {};
  bpf_attr attributes = {};
  attributes.info.bpf_fd = static_cast<std::uint32_t>(fd);
  attributes.info.info_len = sizeof(info);
  attributes.info.info = AddressOf(&info);
  RETURN_IF_ERROR(Bpf(BPF_OBJ_GET_INFO_BY_FD, attributes, "BPF_OBJ_GET_INFO_BY_FD").status());
  return info;
}

// ---- dump ----

// All keys, then all values; `count` of each.
Result<std::string> ReadContent(int fd, const image::BpfmapFileEntry& map, std::uint32_t& count) {
  std::string keys, values, key(map.key_size(), '\0'), next = key, value(map.value_size(), '\0');
  bpf_attr attributes = {};
  attributes.map_fd = static_cast<std::uint32_t>(fd);
  for (count = 0; count < map.max_entries(); ++count) {
    attributes.key = count == 0 ? 0 : AddressOf(key.data());
    attributes.next_key = AddressOf(next.data());
    const Result<int> step = Bpf(BPF_MAP_GET_NEXT_KEY, attributes, "BPF_MAP_GET_NEXT_KEY");
    if (ErrnoOf(step.status()) == ENOENT) break;
    RETURN_IF_ERROR(step.status());
    attributes.key = AddressOf(next.data());
    attributes.value = AddressOf(value.data());
    RETURN_IF_ERROR(Bpf(BPF_MAP_LOOKUP_ELEM, attributes, "BPF_MAP_LOOKUP_ELEM").status());
    keys += next;
    values += value;
    key.swap(next);
  }
  return keys + values;
}

Status ReadShape(const OpenFile& file, image::BpfmapFileEntry& map) {
  const auto number = [&](std::string_view name) -> Result<std::uint64_t> {
    std::string_view word = text::Trim(text::Field(file.fdinfo, name).value_or(""));
    const bool hexadecimal = word.starts_with("0x");
    if (hexadecimal) word.remove_prefix(2);
    return text::Number<std::uint64_t>(word, hexadecimal ? 16 : 10);
  };
  const auto put = [&](std::string_view name, auto set) -> Status {
    ASSIGN_OR_RETURN(const std::uint64_t value, number(name));
    (map.*set)(static_cast<std::uint32_t>(value));
    return OkStatus();
  };
  using Map = image::BpfmapFileEntry;
  RETURN_IF_ERROR(put("map_type", &Map::set_map_type));
  RETURN_IF_ERROR(put("key_size", &Map::set_key_size));
  RETURN_IF_ERROR(put("value_size", &Map::set_value_size));
  RETURN_IF_ERROR(put("max_entries", &Map::set_max_entries));
  RETURN_IF_ERROR(put("map_flags", &Map::set_map_flags));
  RETURN_IF_ERROR(put("map_id", &Map::set_map_id));
  ASSIGN_OR_RETURN(const std::uint64_t memory, number("memlock"));
  map.set_memlock(memory);
  ASSIGN_OR_RETURN(const std::uint64_t frozen, number("frozen"));
  map.set_frozen(frozen != 0);
  return OkStatus();
}

Status CheckSupported(const image::BpfmapFileEntry& map) {
  if (map.map_type() != BPF_MAP_TYPE_HASH && map.map_type() != BPF_MAP_TYPE_ARRAY) {
    return Unimplemented("a BPF map of type " + std::to_string(map.map_type()) +
                         "; only hash and array can be checkpointed");
  }
  const std::uint64_t size = (std::uint64_t{map.key_size()} + map.value_size()) * map.max_entries();
  if (size > kMostBytes) {
    return Unimplemented("a BPF map of more than " + std::to_string(kMostBytes >> 20) + " MiB");
  }
  if (map.ifindex() != 0) return Unimplemented("a BPF map of a network device");
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry entry = NewEntry(file, image::FD_BPFMAP);
  image::BpfmapFileEntry& map = *entry.mutable_bpf();
  RETURN_IF_ERROR(DumpCommon(file, context, map));
  map.set_pos(0);
  RETURN_IF_ERROR(Annotate(ReadShape(file, map), NameOf(file) + ", fdinfo"));
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const bpf_map_info info, InfoOf(fd));
  map.set_map_name(std::string(info.name, ::strnlen(info.name, sizeof(info.name))));
  map.set_ifindex(info.ifindex);
  RETURN_IF_ERROR(Annotate(CheckSupported(map), NameOf(file)));
  if (info.btf_id != 0) {
    return Unimplemented(NameOf(file) + ": a BPF map with types (BTF), which may hold locks");
  }
  auto& saved = context.Found()["bpf-map " + std::to_string(map.map_id())];
  if (saved != nullptr) return entry;
  image::BpfmapDataEntry data;
  std::uint32_t count = 0;
  Result<std::string> content = ReadContent(fd, map, count);
  if (!content.ok()) return Annotate(content.status(), NameOf(file));
  data.set_map_id(map.map_id());
  data.set_count(count);
  data.set_keys_bytes(count * map.key_size());
  data.set_values_bytes(count * map.value_size());
  context.AddRecord("bpfmap-data", data.SerializeAsString(), *content);
  context.Note(NameOf(file) + ": who uses this BPF map outside the tree will not see the new one");
  saved = std::make_shared<bool>(true);
  return entry;
}

// ---- restore ----

Status Fill(int fd, const image::BpfmapFileEntry& map, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const auto records, context.Records("bpfmap-data"));
  for (const FileRestoreContext::Record& record : records) {
    image::BpfmapDataEntry data;
    if (!data.ParsePartialFromString(record.message) || !data.IsInitialized()) {
      return DataLoss("bpfmap-data does not parse");
    }
    if (data.map_id() != map.map_id()) continue;
    const std::uint64_t keys = std::uint64_t{data.count()} * map.key_size();
    const std::uint64_t values = std::uint64_t{data.count()} * map.value_size();
    if (data.count() > map.max_entries() || record.bytes.size() != keys + values) {
      return DataLoss("bpfmap-data does not fit its map");
    }
    bpf_attr attributes = {};
    attributes.map_fd = static_cast<std::uint32_t>(fd);
    for (std::uint64_t i = 0; i < data.count(); ++i) {
      attributes.key = AddressOf(record.bytes.data() + i * map.key_size());
      attributes.value = AddressOf(record.bytes.data() + keys + i * map.value_size());
      RETURN_IF_ERROR(Bpf(BPF_MAP_UPDATE_ELEM, attributes, "BPF_MAP_UPDATE_ELEM").status());
    }
  }
  if (!map.frozen()) return OkStatus();
  bpf_attr attributes = {};
  attributes.map_fd = static_cast<std::uint32_t>(fd);
  return Bpf(BPF_MAP_FREEZE, attributes, "BPF_MAP_FREEZE").status();
}

Result<UniqueFd> Make(const image::BpfmapFileEntry& map, FileRestoreContext& context) {
  RETURN_IF_ERROR(CheckSupported(map));
  bpf_attr attributes = {};
  attributes.map_type = map.map_type();
  attributes.key_size = map.key_size();
  attributes.value_size = map.value_size();
  attributes.max_entries = map.max_entries();
  attributes.map_flags = map.map_flags();
  map.map_name().copy(attributes.map_name, sizeof(attributes.map_name) - 1);
  Result<UniqueFd> fd = context.actor().BpfMap(std::as_bytes(std::span(&attributes, 1)));
  if (ErrnoOf(fd.status()) == EPERM) {
    return FailedPrecondition("BPF maps need CAP_BPF, which the program has not here");
  }
  RETURN_IF_ERROR(fd.status());
  RETURN_IF_ERROR(Fill(fd->get(), map, context));
  return fd;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_bpf()) return DataLoss("no BPF map in the entry");
  const image::BpfmapFileEntry& map = entry.bpf();
  const std::string key = KeptKey("bpf-map", map.map_id());
  if (!context.Kept().contains(key)) {
    ASSIGN_OR_RETURN(context.Kept()[key], Make(map, context));
  }
  ASSIGN_OR_RETURN(const bpf_map_info info, InfoOf(context.Kept()[key].get()));
  const int mode = OpenFlags(map.flags()) & O_ACCMODE;
  bpf_attr attributes = {};
  attributes.map_id = info.id;
  attributes.open_flags = mode == O_RDONLY ? BPF_F_RDONLY : mode == O_WRONLY ? BPF_F_WRONLY : 0;
  ASSIGN_OR_RETURN(const int fd, Bpf(BPF_MAP_GET_FD_BY_ID, attributes, "BPF_MAP_GET_FD_BY_ID"));
  return UniqueFd(fd);
}

}  // namespace

const FileKind kBpfMap = {
    .name = "BPF map", .owns = Owns, .dump = Dump, .type = image::FD_BPFMAP, .restore = Restore};

}  // namespace stasis::engine
