// Free space that checkpoints leave on their disk: images, containers and the kubelet live there too. And what is
// left there of their namespace's share.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "cri/checkpoint/namespace_share.h"
#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::cri {

class FreeSpace {
 public:
  /// Of the file system with `folder`; 0 percent: all may be used.
  FreeSpace(std::string folder, int least_percent)
      : folder_(std::move(folder)), least_percent_(least_percent) {}

  /// `bytes`: how much of the disk is taken by what is written, compressed or not. `part` outlives this; null: no
  /// share is kept.
  void KeepShare(NamespaceShare::Part* part, std::function<std::uint64_t()> bytes) {
    part_ = part;
    bytes_ = std::move(bytes);
  }

  /// ResourceExhausted, with ENOSPC: there is less.
  Status Check() const;
  /// To be told of all that is written; checks every few MiB. As Check, or with EDQUOT: the share is taken.
  Status Wrote(std::uint64_t bytes);
  /// Wrote(), then `passed_on`, which outlives what it gives.
  engine::PassedOn Counting(const engine::PassedOn& passed_on);

 private:
  const std::string folder_;
  const int least_percent_;
  NamespaceShare::Part* part_ = nullptr;
  std::function<std::uint64_t()> bytes_;
  std::atomic<std::uint64_t> unchecked_ = 0;
};

/// Passes images on to another sink for as long as there is space.
class SpaceKeepingSink : public engine::ImageSink {
 public:
  /// Both outlive this.
  SpaceKeepingSink(engine::ImageSink& sink, FreeSpace& space) : sink_(sink), space_(space) {}

  Result<std::unique_ptr<engine::ImageStream>> Open(std::string_view name,
                                                    std::uint64_t size_bytes) override;
  Status Fill(std::span<const engine::ImageContent> files,
              const engine::PassedOn& passed_on) override;
  Status BeginIncrement() override { return sink_.BeginIncrement(); }

 private:
  engine::ImageSink& sink_;
  FreeSpace& space_;
};

}  // namespace stasis::cri
