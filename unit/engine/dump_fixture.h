// Programs to dump, and what their images say.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/checkpoint_images.h"
#include "engine/dump.h"
#include "engine/image/image_file.h"
#include "unit/support/child.h"
#include "unit/support/matchers.h"
#include "unit/support/memory_images.h"

namespace stasis::engine {

/// Words that a test and its program both see.
class SharedWords {
 public:
  static constexpr int kCount = 16;
  using Word = std::atomic<std::uint64_t>;

  SharedWords()
      : words_(static_cast<Word*>(::mmap(nullptr, kCount * sizeof(Word), PROT_READ | PROT_WRITE,
                                         MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  SharedWords(const SharedWords&) = delete;
  SharedWords& operator=(const SharedWords&) = delete;
  ~SharedWords() { ::munmap(words_, kCount * sizeof(Word)); }

  Word& operator[](int i) const { return words_[i]; }
  std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(words_); }

  /// Until word `i` is above `floor`; false after ten seconds.
  bool WaitAbove(int i, std::uint64_t floor) const {
    for (int look = 0; look < 10'000; ++look) {
      if (words_[i] > floor) return true;
      ::usleep(1000);
    }
    return false;
  }

 private:
  Word* words_;
};

/// A child without descriptors of the test's own, and with /dev/null as its first three.
template <typename Body>
testing::Child Program(Body body) {
  return testing::Child([&body] {
    const int null = ::open("/dev/null", O_RDWR);
    for (const int fd : {0, 1, 2}) ::dup2(null, fd);
    ::close_range(3, ~0u, 0);
    return body();
  });
}

/// A program that has prepared something, said so by word 0, and waits for its end.
template <typename Body>
testing::Child Prepared(const SharedWords& words, Body prepare) {
  testing::Child child = Program([&] {
    prepare();
    words[0] = 1;
    return testing::Sleep();
  });
  EXPECT_TRUE(words.WaitAbove(0, 0));
  // It has said so before it sleeps.
  testing::WaitForState(child.pid(), 'S');
  return child;
}

inline std::string ProcText(pid_t pid, const std::string& name) {
  return ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/" + name).value_or("");
}

/// Without a pre-copy, which else would depend on how much memory earlier tests left in ours.
inline DumpRequest AllAtOnce(pid_t root = 0) {
  DumpRequest request;
  request.root = root;
  request.options.pre_copy = false;
  return request;
}

inline Result<DumpReport> DumpTo(pid_t pid, testing::MemoryImages& images) {
  return Dump(AllAtOnce(pid), images);
}

/// The images of `pid`, read by the restore's own reader.
inline CheckpointImages ImagesOf(pid_t pid, testing::MemoryImages& images) {
  const auto report = DumpTo(pid, images);
  EXPECT_THAT(report, testing::IsOk());
  auto loaded = LoadCheckpoint(images);
  EXPECT_THAT(loaded, testing::IsOk());
  return loaded.ok() ? *std::move(loaded) : CheckpointImages();
}

/// The stored pages of `image_name` ("pagemap-7.img") by address.
inline std::map<std::uint64_t, std::string> PagesOf(const testing::MemoryImages& images,
                                                    const std::string& image_name) {
  std::map<std::uint64_t, std::string> pages;
  auto reader = ImageFileReader::Open(images, image_name, ImageType(image_name));
  image::PagemapHead head;
  EXPECT_THAT(reader, testing::IsOk());
  if (!reader.ok() || !reader->Record(head).ok()) return pages;
  const std::string& bytes = images.files.at(ImageName("pages", head.pages_id()));
  std::size_t offset = 0;
  while (!reader->AtEnd()) {
    image::PagemapEntry run;
    EXPECT_THAT(reader->Record(run), testing::IsOk());
    for (std::uint64_t i = 0; i < run.nr_pages(); ++i, offset += 4096) {
      pages[run.vaddr() + i * 4096] = bytes.substr(offset, 4096);
    }
  }
  EXPECT_EQ(offset, bytes.size());
  return pages;
}

}  // namespace stasis::engine
