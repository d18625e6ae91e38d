// Where the bytes of a tar go: a file as they are, or compressed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "archive/compression.h"
#include "archive/tar_format.h"
#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

class TarOutput {
 public:
  virtual ~TarOutput() = default;

  virtual Status Write(std::span<const std::byte> bytes) = 0;
  /// As HashedRing::Fill and AwaitFilled.
  virtual Status Fill(std::uint64_t size, const engine::ReadPiece& read,
                      const engine::PassedOn& passed_on) = 0;
  virtual Status AwaitFilled() = 0;
  /// A header that may be put anew, by PutHeader with its offset in the tar.
  virtual Status WriteHeader(const TarHeader& header) = 0;
  virtual Status PutHeader(std::uint64_t position, const TarHeader& header) = 0;

  /// What is written between the two is one member's content.
  virtual void BeginMember() = 0;
  virtual void EndMember() = 0;
  /// MemberDigest of the members so far, in their order. No member follows.
  virtual Result<std::vector<std::string>> Digests() = 0;

  /// Puts into the file what is still on its way.
  virtual Status Finish() = 0;
  /// Bytes in the file, once finished.
  virtual std::uint64_t file_bytes() const = 0;
  /// Bytes that it takes of the disk by now: of the file, and of what waits beside it.
  virtual std::uint64_t disk_bytes() const { return file_bytes(); }

  /// Asked now and then while what waited is compressed; what it says but OK ends that.
  virtual void StopUnless(const std::function<Status()>&) {}
  /// Whether somebody waits for what is written from here on: a container that stands still.
  virtual void Hurry(bool) {}
  /// What follows has changed while what is there was written: the sooner it is taken, the less changes again.
  virtual void BeginIncrement() {}
  /// Once finished.
  virtual CompressionReport report() const { return {}; }
};

/// `fd` is empty, readable and outlives the output.
std::unique_ptr<TarOutput> MakePlainOutput(int fd);

/// `folder_fd` is where the file is, for what has to wait for its compression.
std::unique_ptr<TarOutput> MakeCompressedOutput(int fd, int folder_fd,
                                                const Compression& compression);

}  // namespace stasis::archive
