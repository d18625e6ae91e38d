#include "cri/restore/records.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <utility>

#include "archive/json_fields.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

constexpr std::string_view kSuffix = ".json";
constexpr std::string_view kTemporary = ".new";
constexpr std::size_t kMaxRecordBytes = std::size_t{1} << 20;
constexpr std::array<std::string_view, 5> kPhases = {"created", "restoring", "restored", "failed",
                                                     "fresh"};

// Container ids become file names: those of all runtimes are hexadecimal digits.
bool IsPlainName(std::string_view id) {
  return !id.empty() && id.size() <= 200 && id.front() != '.' &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

nlohmann::json ToJson(const RestoredContainer& record) {
  return {{"id", record.id},
          {"phase", PhaseText(record.phase)},
          {"failure", record.failure},
          {"sandboxId", record.sandbox_id},
          {"podUid", record.pod_uid},
          {"podNamespace", record.pod_namespace},
          {"pod", record.pod},
          {"name", record.name},
          {"attempt", record.attempt},
          {"image", record.image},
          {"userSpecifiedImage", record.user_specified_image},
          {"imageRef", record.image_ref},
          {"imageId", record.image_id},
          {"command", record.command},
          {"args", record.args},
          {"checkpoint",
           {{"path", record.checkpoint.path},
            {"snapshotter", record.checkpoint.snapshotter},
            {"snapshotKey", record.checkpoint.snapshot_key}}},
          {"logPath", record.log_path},
          {"clocksMayGoBack", record.clocks_may_go_back},
          {"lazyPages", record.lazy_pages}};
}

std::vector<std::string> Texts(const nlohmann::json& json, const char* key) {
  std::vector<std::string> texts;
  for (const nlohmann::json& entry : archive::ArrayField(json, key)) {
    if (entry.is_string()) texts.push_back(entry.get<std::string>());
  }
  return texts;
}

Result<RestoredContainer> FromJson(const nlohmann::json& json) {
  using archive::TextField;
  const auto phase = std::find(kPhases.begin(), kPhases.end(), TextField(json, "phase"));
  if (phase == kPhases.end()) return DataLoss("no known phase");
  const nlohmann::json& checkpoint = archive::Field(json, "checkpoint");
  return RestoredContainer{
      .id = TextField(json, "id"),
      .phase = static_cast<RestorePhase>(phase - kPhases.begin()),
      .failure = TextField(json, "failure"),
      .sandbox_id = TextField(json, "sandboxId"),
      .pod_uid = TextField(json, "podUid"),
      .pod_namespace = TextField(json, "podNamespace"),
      .pod = TextField(json, "pod"),
      .name = TextField(json, "name"),
      .attempt = archive::NumberField<std::uint32_t>(json, "attempt"),
      .image = TextField(json, "image"),
      .user_specified_image = TextField(json, "userSpecifiedImage"),
      .image_ref = TextField(json, "imageRef"),
      .image_id = TextField(json, "imageId"),
      .command = Texts(json, "command"),
      .args = Texts(json, "args"),
      .checkpoint = {.path = TextField(checkpoint, "path"),
                     .snapshotter = TextField(checkpoint, "snapshotter"),
                     .snapshot_key = TextField(checkpoint, "snapshotKey")},
      .log_path = TextField(json, "logPath"),
      .clocks_may_go_back = archive::Field(json, "clocksMayGoBack") == true,
      .lazy_pages = archive::Field(json, "lazyPages") == true,
  };
}

Result<RestoredContainer> ReadRecord(int directory, const std::string& name) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(directory, name, kMaxRecordBytes));
  ASSIGN_OR_RETURN(const nlohmann::json json, archive::ParseObject(text, "record"));
  ASSIGN_OR_RETURN(RestoredContainer record, FromJson(json));
  if (record.id + std::string(kSuffix) != name) return DataLoss("it is of another container");
  return record;
}

Status Sync(int fd, std::string_view what) {
  if (::fsync(fd) == 0) return OkStatus();
  const int error = errno;
  return SyscallError(error, "fsync " + std::string(what));
}

}  // namespace

bool IsWhole(RestorePhase phase) {
  return phase == RestorePhase::kRestored || phase == RestorePhase::kFresh;
}

std::string_view PhaseText(RestorePhase phase) { return kPhases[static_cast<std::size_t>(phase)]; }

Result<std::unique_ptr<Records>> Records::Open(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    const int error = errno;
    return SyscallError(error, "mkdir " + directory);
  }
  ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(AT_FDCWD, directory, O_RDONLY | O_DIRECTORY));
  std::unique_ptr<Records> records(new Records(std::move(fd)));
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (!name.ends_with(kSuffix)) continue;  // a ".new" that a crash left: the next Put replaces it
    Result<RestoredContainer> record = ReadRecord(records->directory_.get(), name);
    if (!record.ok()) {
      return Annotate(
          record.status(),
          entry->path().string() + ": a broken record; remove the file if its container is gone");
    }
    std::string id = record->id;
    records->records_.emplace(std::move(id), std::move(*record));
  }
  if (error) return SyscallError(error.value(), "read the directory " + directory);
  records->size_ = records->records_.size();
  return records;
}

Status Records::Put(const RestoredContainer& record) {
  if (!IsPlainName(record.id))
    return Internal("the container id '" + record.id + "' is no file name");
  const std::lock_guard lock(mutex_);
  const std::string name = record.id + std::string(kSuffix);
  const std::string temporary = record.id + std::string(kTemporary);
  ASSIGN_OR_RETURN(UniqueFd file,
                   OpenAt(directory_.get(), temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600));
  RETURN_IF_ERROR(Annotate(WriteAll(file.get(), archive::Dump(ToJson(record))), "write " + name));
  RETURN_IF_ERROR(Sync(file.get(), name));
  if (::renameat(directory_.get(), temporary.c_str(), directory_.get(), name.c_str()) != 0) {
    const int error = errno;
    return SyscallError(error, "rename " + name);
  }
  RETURN_IF_ERROR(Sync(directory_.get(), "the state directory"));
  records_.insert_or_assign(record.id, record);
  size_ = records_.size();
  return OkStatus();
}

Status Records::Remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  if (records_.erase(id) == 0) return OkStatus();
  size_ = records_.size();
  if (::unlinkat(directory_.get(), (id + std::string(kSuffix)).c_str(), 0) != 0 &&
      errno != ENOENT) {
    const int error = errno;
    return SyscallError(error, "unlink the record of " + id);
  }
  return OkStatus();
}

std::optional<RestoredContainer> Records::Find(const std::string& id) const {
  if (empty() || id.empty()) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const auto found = records_.lower_bound(id);
  if (found == records_.end() || !found->first.starts_with(id)) return std::nullopt;
  const auto next = std::next(found);
  const bool ambiguous =
      found->first != id && next != records_.end() && next->first.starts_with(id);
  return ambiguous ? std::nullopt : std::optional(found->second);
}

std::optional<RestoredContainer> Records::FindByName(const std::string& sandbox_id,
                                                     const std::string& name,
                                                     std::uint32_t attempt) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, record] : records_) {
    if (record.sandbox_id == sandbox_id && record.name == name && record.attempt == attempt) {
      return record;
    }
  }
  return std::nullopt;
}

bool Records::HasRun(const std::string& pod_uid, const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return !pod_uid.empty() && std::any_of(records_.begin(), records_.end(), [&](const auto& entry) {
    const RestoredContainer& record = entry.second;
    return record.pod_uid == pod_uid && record.name == name && IsWhole(record.phase);
  });
}

std::vector<RestoredContainer> Records::All() const {
  const std::lock_guard lock(mutex_);
  std::vector<RestoredContainer> all;
  all.reserve(records_.size());
  for (const auto& [id, record] : records_) all.push_back(record);
  return all;
}

}  // namespace stasis::cri
