#include "archive/oci_layout.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <utility>
#include <vector>

#include "archive/json_fields.h"
#include "archive/pending_file.h"
#include "archive/tar_format.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

constexpr char kLayoutFile[] = R"({"imageLayoutVersion":"1.0.0"})";

/// "blobs/sha256/DIGITS" of "sha256:DIGITS".
std::string BlobPath(const std::string& digest) {
  return "blobs/sha256/" + digest.substr(digest.find(':') + 1);
}

/// The annotations stand on the index too: containerd looks at the first thing that it resolves.
std::string Index(const CheckpointImage& image, const json& annotations, const std::string& name) {
  json on_manifest = annotations;
  on_manifest["org.opencontainers.image.ref.name"] = name;
  return Dump(json{
      {"schemaVersion", 2},
      {"mediaType", "application/vnd.oci.image.index.v1+json"},
      {"manifests", json::array({json{{"mediaType", kManifestMediaType},
                                      {"digest", image.manifest_digest},
                                      {"size", image.manifest.size()},
                                      {"annotations", on_manifest}}})},
      {"annotations", annotations},
  });
}

/// Copies the whole archive to the end of `to`, inside the kernel where that is possible (sendfile(2)).
Status CopyArchive(const Archive& archive, int to) {
  off_t offset = 0;
  const auto size = static_cast<off_t>(archive.file_size());
  while (offset < size) {
    const ssize_t sent =
        ::sendfile(to, archive.file_fd(), &offset, static_cast<std::size_t>(size - offset));
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      return SyscallError(errno, "copy the layer");
    }
    if (sent == 0) return DataLoss("the archive became shorter while it was copied");
  }
  return OkStatus();
}

struct Part {
  std::string path;
  const std::string* text;  ///< Null: the layer.
};

Status WriteFile(const std::string& path, const Part& part, const Archive& archive) {
  ASSIGN_OR_RETURN(const UniqueFd fd,
                   OpenAt(AT_FDCWD, path, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0600));
  RETURN_IF_ERROR(part.text != nullptr ? WriteAll(fd.get(), *part.text)
                                       : CopyArchive(archive, fd.get()));
  if (::fsync(fd.get()) != 0) {
    return SyscallError(errno, "fsync " + path);
  }
  return OkStatus();
}

Status WriteFolder(const std::string& path, const std::vector<Part>& parts,
                   const Archive& archive) {
  if (::mkdir(path.c_str(), 0700) != 0) {
    return SyscallError(errno, "mkdir " + path);
  }
  absl::Cleanup remove = [&] {
    std::error_code ignored;  // already reporting worse
    std::filesystem::remove_all(path, ignored);
  };
  for (const char* const folder : {"/blobs", "/blobs/sha256"}) {
    if (::mkdir((path + folder).c_str(), 0700) != 0) {
      return SyscallError(errno, "mkdir " + path + folder);
    }
  }
  for (const Part& part : parts) {
    RETURN_IF_ERROR(Annotate(WriteFile(path + "/" + part.path, part, archive), path));
  }
  std::move(remove).Cancel();
  return OkStatus();
}

Status WriteTar(const std::string& path, const std::vector<Part>& parts, const Archive& archive) {
  ASSIGN_OR_RETURN(PendingFile file, PendingFile::Create(path));
  for (const Part& part : parts) {
    const std::uint64_t size = part.text != nullptr ? part.text->size() : archive.file_size();
    const TarHeader header = MakeTarHeader(part.path, kTarRegular, size, 0600, 0);
    RETURN_IF_ERROR(WriteAll(file.fd(), std::as_bytes(std::span(&header, 1))));
    RETURN_IF_ERROR(part.text != nullptr ? WriteAll(file.fd(), *part.text)
                                         : CopyArchive(archive, file.fd()));
    RETURN_IF_ERROR(WriteAll(file.fd(), std::string(RoundUpToBlock(size) - size, '\0')));
  }
  RETURN_IF_ERROR(WriteAll(file.fd(), std::string(2 * kTarBlock, '\0')));
  return file.Publish();
}

}  // namespace

Status WriteOciLayout(const Archive& archive, const CheckpointImage& image, const std::string& name,
                      const std::string& path) {
  ASSIGN_OR_RETURN(const auto annotations, ImageAnnotations(archive));
  const std::string layout = kLayoutFile;
  const std::string index = Index(image, annotations, name);
  const std::vector<Part> parts = {
      {"oci-layout", &layout},
      {BlobPath(image.manifest_digest), &image.manifest},
      {BlobPath(image.config_digest), &image.config},
      {BlobPath(image.layer_digest), nullptr},
      {"index.json", &index},  // last: without it there is no image
  };
  return path.ends_with(".tar") ? WriteTar(path, parts, archive)
                                : WriteFolder(path, parts, archive);
}

}  // namespace stasis::archive
