// Source  open(2), O_TMPFILE and BUGS; linkat(2)
#include "engine/image/pending_images.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <future>
#include <mutex>

#include "engine/base/in_halves.h"
#include "engine/base/io.h"

namespace stasis::engine {
namespace {

constexpr unsigned kMode = 0600;  // memory of a process: for its dumper's eyes
constexpr unsigned kFolderMode = 0700;
constexpr char kParent[] = "parent";
constexpr std::size_t kMostHeld = 1024;  // descriptors

bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

class FileStream : public ImageStream {
 public:
  FileStream(int fd, std::string path, std::uint64_t size_bytes, std::shared_ptr<bool> whole)
      : fd_(fd), path_(std::move(path)), left_(size_bytes), whole_(std::move(whole)) {}

  Status Write(std::span<const std::byte> bytes) override {
    if (bytes.size() > left_) return Internal(path_ + ": more bytes than announced");
    left_ -= bytes.size();
    const Status written = WriteAll(fd_, bytes);
    if (ErrnoOf(written) == ENOSPC || ErrnoOf(written) == EDQUOT) {
      return SyscallError(ErrnoOf(written),
                          "write " + path_ + " (free space or choose another folder)");
    }
    return Annotate(written, path_);
  }

  Status Finish() override {
    if (left_ != 0) return FailedPrecondition(path_ + ": fewer bytes than announced");
    *whole_ = true;
    return OkStatus();
  }

 private:
  const int fd_;
  const std::string path_;
  std::uint64_t left_;
  const std::shared_ptr<bool> whole_;
};

/// Whether a file of this name is one that a checkpoint consists of; others (logs) stand beside them.
bool IsOfCheckpoint(std::string_view name) {
  return name.ends_with(".img") || name == kParent || name == "stats-dump";
}

}  // namespace

Result<std::unique_ptr<PendingImages>> PendingImages::Create(const std::string& folder) {
  Result<UniqueFd> fd = OpenAt(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY);
  if (ErrnoOf(fd.status()) == ENOENT) {
    return Annotate(fd.status(), "the folder for the images must exist (make it with mkdir)");
  }
  RETURN_IF_ERROR(fd.status());
  std::error_code error;
  std::string found;
  auto entry = std::filesystem::directory_iterator(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (IsOfCheckpoint(entry->path().filename().string())) found = entry->path().filename();
  }
  if (error) return SyscallError(error.value(), "read " + folder);
  if (!found.empty()) {
    return AlreadyExists(folder + " has a checkpoint's " + found +
                         ", and images of two checkpoints must not mix; choose an empty folder");
  }
  if (::faccessat(fd->get(), ".", W_OK | X_OK, AT_EACCESS) != 0) {
    return SyscallError(errno, "write to " + folder + " (choose another folder)");
  }
  return std::unique_ptr<PendingImages>(new PendingImages(folder, *std::move(fd)));
}

PendingImages::~PendingImages() {
  if (published_) return;
  for (const File& file : files_) {
    if (file.named) ::unlinkat(FolderAt(file.depth), file.name.c_str(), 0);
  }
  for (std::size_t depth = parents_.size(); depth-- > 0;) {
    ::unlinkat(FolderAt(static_cast<int>(depth)), kParent, AT_REMOVEDIR);
  }
}

int PendingImages::FolderAt(int depth) const {
  return depth == 0 ? folder_.get() : parents_[static_cast<std::size_t>(depth) - 1].get();
}

Status PendingImages::BeginIncrement() {
  // The deepest first, so that each name is free where it goes.
  std::ranges::stable_sort(files_, std::ranges::greater(), &File::depth);
  for (File& file : files_) {
    ++file.depth;
    if (!file.named) continue;
    RETURN_IF_ERROR(MakeParents(file.depth));
    if (::renameat(FolderAt(file.depth - 1), file.name.c_str(), FolderAt(file.depth),
                   file.name.c_str()) != 0) {
      return SyscallError(errno, "rename " + path_ + "/" + file.name);
    }
  }
  return OkStatus();
}

Status PendingImages::MakeParents(int depth) {
  while (static_cast<int>(parents_.size()) < depth) {
    const int folder = FolderAt(static_cast<int>(parents_.size()));
    if (::mkdirat(folder, kParent, kFolderMode) != 0) {
      return SyscallError(errno, "mkdir " + path_ + "/" + kParent);
    }
    ASSIGN_OR_RETURN(UniqueFd parent, OpenAt(folder, kParent, O_RDONLY | O_DIRECTORY));
    parents_.push_back(std::move(parent));
  }
  return OkStatus();
}

UniqueFd PendingImages::MakeNameless() const {
  return UniqueFd(::openat(folder_.get(), ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, kMode));
}

void PendingImages::Prepare(std::size_t files) {
  files = std::min(files, kMostHeld / 2);
  while (spare_.size() < files) {
    UniqueFd fd = MakeNameless();
    if (!fd) return;  // whoever needs it hears why
    spare_.push_back(std::move(fd));
  }
}

Result<PendingImages::File> PendingImages::Make(const std::string& name) {
  File file{.name = name, .fd = {}};
  if (!spare_.empty()) {
    file.fd = std::move(spare_.back());
    spare_.pop_back();
    return file;
  }
  UniqueFd nameless = MakeNameless();
  // EISDIR: what a file system without O_TMPFILE says through an older kernel. open(2), BUGS
  if (!nameless && errno != EOPNOTSUPP && errno != EISDIR) {
    return SyscallError(errno, "create a file in " + path_);
  }
  if (nameless) {
    file.fd = std::move(nameless);
    return file;
  }
  ASSIGN_OR_RETURN(file.fd,
                   OpenAt(folder_.get(), name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, kMode));
  file.named = true;
  return file;
}

Result<std::unique_ptr<ImageStream>> PendingImages::Open(std::string_view name,
                                                         std::uint64_t size_bytes) {
  if (!IsPlainName(name)) return InvalidArgument("image file name");
  if (held_ >= kMostHeld) RETURN_IF_ERROR(LetGoOfWhole());
  ASSIGN_OR_RETURN(File file, Make(std::string(name)));
  files_.push_back(std::move(file));
  ++held_;
  const File& made = files_.back();
  return std::make_unique<FileStream>(made.fd.get(), path_ + "/" + made.name, size_bytes,
                                      made.whole);
}

Status PendingImages::Fill(std::span<const ImageContent> files, const PassedOn& passed_on) {
  struct Pair {
    const ImageContent* file;
    std::unique_ptr<ImageStream> stream;
  };
  std::vector<Pair> pairs;
  for (const ImageContent& file : files) {
    ASSIGN_OR_RETURN(auto stream, Open(file.name, file.size));
    pairs.push_back({&file, std::move(stream)});
  }
  std::mutex mutex;  // of `passed_on`, which knows of no threads
  const auto passed = [&](std::uint64_t bytes) {
    const std::lock_guard lock(mutex);
    return passed_on(bytes);
  };
  const auto fill = [&](const Pair& pair) -> Status {
    RETURN_IF_ERROR(pair.stream->Fill(pair.file->size, pair.file->read, passed));
    return pair.stream->Finish();
  };
  return InHalves(std::span(pairs), fill, 2);
}

Status PendingImages::LetGoOfWhole() {
  for (File& file : files_) {
    if (!file.fd || !*file.whole) continue;
    RETURN_IF_ERROR(MakeParents(file.depth));
    RETURN_IF_ERROR(GiveName(file));
    file.fd.Reset();
    --held_;
  }
  return OkStatus();
}

Status PendingImages::Sync(const File& file) const {
  UniqueFd again;
  if (!file.fd) {
    ASSIGN_OR_RETURN(again, OpenAt(FolderAt(file.depth), file.name, O_RDONLY | O_NOFOLLOW));
  }
  if (::fsync(file.fd ? file.fd.get() : again.get()) == 0) return OkStatus();
  return SyscallError(errno, "fsync " + path_ + "/" + file.name);
}

// Each waits until the disk has flushed its cache, and those that wait at the same time share that (block/blk-flush.c):
// 900 files take 3.2 s one after the other, 0.2 s by four threads.
Status PendingImages::SyncAll() const {
  constexpr std::size_t kThreads = 4;
  std::atomic<std::size_t> next = 0;
  const auto sync_some = [&]() -> Status {
    for (std::size_t at = next++; at < files_.size(); at = next++) {
      RETURN_IF_ERROR(Sync(files_[at]));
    }
    return OkStatus();
  };
  std::vector<std::future<Status>> others;
  for (std::size_t i = 1; i < std::min(kThreads, files_.size()); ++i) {
    others.push_back(std::async(std::launch::async, sync_some));
  }
  Status status = sync_some();
  for (std::future<Status>& other : others) status.Update(other.get());
  return status;
}

Status PendingImages::GiveName(File& file) {
  if (file.named) return OkStatus();
  // The way that needs no CAP_DAC_READ_SEARCH. linkat(2) never replaces.
  const std::string link = "/proc/self/fd/" + std::to_string(file.fd.get());
  if (::linkat(AT_FDCWD, link.c_str(), FolderAt(file.depth), file.name.c_str(),
               AT_SYMLINK_FOLLOW) != 0) {
    return SyscallError(errno, "link " + path_ + "/" + file.name);
  }
  file.named = true;
  return OkStatus();
}

Status PendingImages::Publish() {
  RETURN_IF_ERROR(SyncAll());
  for (File& file : files_) {
    RETURN_IF_ERROR(MakeParents(file.depth));
    RETURN_IF_ERROR(GiveName(file));
  }
  for (const UniqueFd& parent : parents_) {
    if (::fsync(parent.get()) != 0) return SyscallError(errno, "fsync " + path_ + "/" + kParent);
  }
  if (::fsync(folder_.get()) != 0) return SyscallError(errno, "fsync " + path_);
  published_ = true;
  return OkStatus();
}

}  // namespace stasis::engine
