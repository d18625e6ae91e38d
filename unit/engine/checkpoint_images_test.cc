#include "engine/checkpoint_images.h"

#include <cstring>
#include <functional>
#include <map>

#include "engine/image/image_file.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Image files in memory, to be changed one by one.
class MemorySource : public ImageSource {
 public:
  std::map<std::string, std::string, std::less<>> content;

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const auto& [name, bytes] : content) names.push_back(name);
    return names;
  }
  Result<std::uint64_t> Size(std::string_view name) const override {
    const auto found = content.find(name);
    if (found == content.end()) return NotFound(name);
    return found->second.size();
  }
  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    const auto found = content.find(name);
    if (found == content.end()) return NotFound(name);
    if (offset + bytes.size() > found->second.size()) return DataLoss(name);
    std::memcpy(bytes.data(), found->second.data() + offset, bytes.size());
    return OkStatus();
  }
};

/// A checkpoint by CRIU 4.2.1: a shell (pid 1) with a child (pid 23), made through containerd or
/// podman.
MemorySource CriuImages(const std::string& engine) {
  MemorySource source;
  const auto directory = OpenDirectorySource("unit/testdata/criu-4.2.1/" + engine);
  EXPECT_THAT(directory, IsOk());
  if (!directory.ok()) return source;
  for (const std::string& name : (*directory)->Names()) {
    source.content[name] = (*directory)->Get(name).value_or("");
  }
  return source;
}

/// `source` with the records of one file changed by `edit`.
template <typename T>
void Edit(MemorySource& source, const std::string& type, const std::string& name,
          const std::function<void(std::vector<T>&)>& edit) {
  auto records = ReadRecords<T>(source, name, type);
  ASSERT_THAT(records, IsOk());
  edit(*records);
  ImageFileBuilder file(type);
  for (const T& record : *records) ASSERT_THAT(file.Add(record), IsOk());
  source.content[name] = file.bytes();
}

void EditTree(MemorySource& source, std::function<void(std::vector<image::PstreeEntry>&)> edit) {
  Edit<image::PstreeEntry>(source, "pstree", "pstree.img", edit);
}
void EditCore(MemorySource& source, int tid, std::function<void(image::CoreEntry&)> edit) {
  Edit<image::CoreEntry>(source, "core", "core-" + std::to_string(tid) + ".img",
                         [&](auto& cores) { edit(cores[0]); });
}
void EditMemory(MemorySource& source, std::function<void(image::MmEntry&)> edit) {
  Edit<image::MmEntry>(source, "mm", "mm-1.img", [&](auto& maps) { edit(maps[0]); });
}
void EditDescriptors(MemorySource& source,
                     std::function<void(std::vector<image::FdinfoEntry>&)> edit) {
  Edit<image::FdinfoEntry>(source, "fdinfo", "fdinfo-2.img", edit);
}

TEST(CheckpointImagesTest, ReadsWhatCriuWroteForContainerdAndPodman) {
  for (const std::string engine : {"containerd", "podman"}) {
    SCOPED_TRACE(engine);
    const auto images = LoadCheckpoint(CriuImages(engine));
    ASSERT_THAT(images, IsOk());
    ASSERT_EQ(images->processes.size(), 2u);
    const ProcessImage& root = images->processes[0];
    const ProcessImage& child = images->processes[1];
    EXPECT_EQ(root.pid(), 1);
    EXPECT_EQ(child.pid(), 23);
    EXPECT_EQ(child.parent(), 1);
    EXPECT_EQ(child.leader().core.tc().comm(), "sleep");
    EXPECT_FALSE(root.zombie);
    EXPECT_FALSE(images->Path(root.mm.exe_file_id()).empty());
    EXPECT_EQ(images->Path(root.fs.root_id()), "/");
    EXPECT_EQ(images->stdio.size(), 3u);
    EXPECT_THAT(images->stdio[1], HasSubstr("pipe:["));
    for (const image::FdinfoEntry& descriptor : root.descriptors) {
      EXPECT_NE(images->File(descriptor.type(), descriptor.id()), nullptr);
    }
  }
  EXPECT_GT(LoadCheckpoint(CriuImages("podman"))->seccomp.seccomp_filters_size(), 0);
}

TEST(CheckpointImagesTest, NamesTheFileThatIsMissingOrCut) {
  const MemorySource whole = CriuImages("containerd");
  for (const auto& [name, bytes] : whole.content) {
    if (name == "descriptors.json" || name == "seccomp.img" || name.starts_with("fdinfo")) continue;
    MemorySource source = whole;
    source.content.erase(name);
    const auto missing = LoadCheckpoint(source);
    EXPECT_FALSE(missing.ok()) << name;
    EXPECT_THAT(Message(missing.status()),
                HasSubstr(name == "files.img" ? "mm-1.img" : name));  // nothing is in files.img
  }
  for (const auto& [name, bytes] : whole.content) {
    if (name == "descriptors.json") continue;
    MemorySource source = whole;
    source.content[name] = bytes.substr(0, bytes.size() - 1);
    EXPECT_THAT(LoadCheckpoint(source), StatusIs(StatusCode::kDataLoss, HasSubstr(name)));
  }
}

TEST(CheckpointImagesTest, RefusesATreeThatContradictsItself) {
  using Tree = std::vector<image::PstreeEntry>;
  const std::map<std::string, std::function<void(Tree&)>> broken = {
      {"there twice", [](Tree& tree) { tree.push_back(tree[1]); }},
      {"not the root", [](Tree& tree) { tree[0].set_ppid(7); }},
      {"child of pid 99", [](Tree& tree) { tree[1].set_ppid(99); }},
      {"child of pid 23", [](Tree& tree) { tree[1].set_ppid(23); }},
      {"id 0", [](Tree& tree) { tree[0].set_pid(0); }},
      {"id 4194304", [](Tree& tree) { tree[0].set_pid(4194304); }},
      {"in group", [](Tree& tree) { tree[1].set_pgid(UINT32_MAX); }},
      {"its own first thread", [](Tree& tree) { tree[0].set_threads(0, 23); }},
      {"task 1 is there twice", [](Tree& tree) { tree[1].add_threads(1); }}};
  for (const auto& [message, edit] : broken) {
    MemorySource source = CriuImages("containerd");
    EditTree(source, edit);
    EXPECT_THAT(LoadCheckpoint(source), StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

TEST(CheckpointImagesTest, TakesAZombieWithTheNumbersThatCriuLeavesInIt) {
  MemorySource source = CriuImages("containerd");
  EditTree(source, [](auto& tree) { tree[1].set_threads(0, 3000000000); });
  EditCore(source, 23, [](image::CoreEntry& core) {
    core.clear_thread_info();
    core.clear_thread_core();
    core.mutable_tc()->set_task_state(2);
    core.mutable_tc()->set_exit_code(7 << 8);
  });
  for (const char* name : {"ids-23.img", "mm-23.img", "fs-23.img", "fdinfo-3.img"}) {
    source.content.erase(name);
  }
  const auto images = LoadCheckpoint(source);
  ASSERT_THAT(images, IsOk());
  EXPECT_TRUE(images->processes[1].zombie);
  EXPECT_THAT(images->processes[1].tree.threads(), ElementsAre(23));
  EXPECT_EQ(images->processes[1].threads.size(), 1u);
  EXPECT_TRUE(images->processes[1].descriptors.empty());

  EditTree(source, [](auto& tree) {  // who has ended has no children
    tree.push_back(tree[0]);
    tree[2].set_pid(30);
    tree[2].set_ppid(23);
  });
  EXPECT_THAT(LoadCheckpoint(source), StatusIs(StatusCode::kInvalidArgument, HasSubstr("pid 23")));
}

TEST(CheckpointImagesTest, GivesThreadsTheSyncedFiltersThatCriuLeavesToTheLeader) {
  MemorySource source = CriuImages("podman");
  EditTree(source, [](auto& tree) { tree[0].add_threads(2); });
  source.content["core-2.img"] = source.content["core-1.img"];
  EditCore(source, 2, [](image::CoreEntry& core) {
    core.clear_tc();
    core.mutable_thread_core()->clear_seccomp_mode();
    core.mutable_thread_core()->clear_seccomp_filter();
  });
  const auto mode_of_second = [&] {
    const auto images = LoadCheckpoint(source);
    EXPECT_THAT(images, IsOk());
    return images->processes[0].threads[1].core.thread_core().seccomp_mode();
  };
  const auto set_flags = [&](std::uint32_t flags) {
    Edit<image::SeccompEntry>(source, "seccomp", "seccomp.img", [=](auto& seccomp) {
      for (auto& filter : *seccomp[0].mutable_seccomp_filters()) filter.set_flags(flags);
    });
  };
  set_flags(0);
  EXPECT_EQ(mode_of_second(), image::SECCOMP_DISABLED);
  set_flags(1);
  EXPECT_EQ(mode_of_second(), image::SECCOMP_FILTER);
}

TEST(CheckpointImagesTest, RefusesATaskThatIsNotWhole) {
  const std::map<std::string, std::function<void(image::CoreEntry&)>> broken = {
      {"registers", [](auto& core) { core.clear_thread_info(); }},
      {"attributes", [](auto& core) { core.clear_thread_core(); }},
      {"credentials", [](auto& core) { core.mutable_thread_core()->clear_creds(); }},
      {"state (tc)", [](auto& core) { core.clear_tc(); }},
      {"state 5", [](auto& core) { core.mutable_tc()->set_task_state(5); }},
      {"61 signal actions",
       [](auto& core) { core.mutable_tc()->mutable_sigactions()->RemoveLast(); }},
      {"0 resource limits", [](auto& core) { core.mutable_tc()->clear_rlimits(); }},
      {"signal of 3 bytes", [](auto& core) {
         core.mutable_tc()->mutable_signals_s()->add_signals()->set_siginfo("abc");
       }}};
  for (const auto& [message, edit] : broken) {
    MemorySource source = CriuImages("containerd");
    EditCore(source, 1, edit);
    EXPECT_THAT(
        LoadCheckpoint(source),
        StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("core-1.img"), HasSubstr(message))));
  }
  MemorySource source = CriuImages("containerd");
  EditCore(source, 1, [](auto& core) { core.set_mtype(image::MARCH_AARCH64); });
  EXPECT_THAT(LoadCheckpoint(source),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("MARCH_AARCH64")));
}

TEST(CheckpointImagesTest, RefusesAreasThatOverlapOrMapNothing) {
  const std::map<std::string, std::function<void(image::MmEntry&)>> broken = {
      {"an area from", [](auto& mm) { mm.mutable_vmas(0)->set_start(mm.vmas(0).start() + 1); }},
      {"an area from 8192 to 4096",
       [](auto& mm) {
         mm.mutable_vmas(0)->set_start(8192);
         mm.mutable_vmas(0)->set_end(4096);
       }},
      {"an area from", [](auto& mm) { mm.mutable_vmas(0)->set_end(~0ull << 12); }},
      {"out of order", [](auto& mm) { mm.mutable_vmas()->SwapElements(0, 1); }},
      {"out of order", [](auto& mm) { mm.mutable_vmas(0)->set_end(mm.vmas(1).end()); }},
      {"maps file 4294967297", [](auto& mm) { mm.mutable_vmas(0)->set_shmid(0x100000001); }},
      {"the program is file 9999", [](auto& mm) { mm.set_exe_file_id(9999); }}};
  for (const auto& [message, edit] : broken) {
    MemorySource source = CriuImages("containerd");
    EditMemory(source, edit);
    EXPECT_THAT(LoadCheckpoint(source), StatusIs(StatusCode::kInvalidArgument,
                                                 AllOf(HasSubstr("mm-1.img"), HasSubstr(message))));
  }
}

TEST(CheckpointImagesTest, TakesGuardsOnlyWithinAreas) {
  MemorySource source = CriuImages("containerd");
  const auto add_guard = [](std::uint64_t below) {
    return [below](image::MmEntry& mm) {
      image::VmaEntry guard = mm.vmas(0);
      guard.set_start(mm.vmas(0).start() - below);
      guard.set_end(mm.vmas(0).start() - below + 4096);
      guard.set_status(0x10000);
      *mm.add_vmas() = guard;
    };
  };
  EditMemory(source, add_guard(0));
  EXPECT_THAT(LoadCheckpoint(source), IsOk());
  EditMemory(source, add_guard(4096));
  EXPECT_THAT(LoadCheckpoint(source),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("mm-1.img")));
}

TEST(CheckpointImagesTest, RefusesDescriptorsThatCannotBe) {
  using Table = std::vector<image::FdinfoEntry>;
  const std::map<std::string, std::function<void(Table&)>> broken = {
      {"0 is there twice", [](Table& table) { table.push_back(table[0]); }},
      {"1048576 is no number", [](Table& table) { table[0].set_fd(1 << 20); }},
      {"FD_REG 77", [](Table& table) { table[0].set_id(77); }},
      {"FD_TTY", [](Table& table) { table[0].set_type(image::FD_TTY); }}};
  for (const auto& [message, edit] : broken) {
    MemorySource source = CriuImages("containerd");
    EditDescriptors(source, edit);
    EXPECT_THAT(LoadCheckpoint(source),
                StatusIs(StatusCode::kInvalidArgument,
                         AllOf(HasSubstr("fdinfo-2.img"), HasSubstr(message))));
  }
}

TEST(CheckpointImagesTest, RefusesFilesThatAreTwiceOrEmpty) {
  using Files = std::vector<image::FileEntry>;
  MemorySource twice = CriuImages("containerd");
  Edit<image::FileEntry>(twice, "files", "files.img", [](Files& f) { f.push_back(f[0]); });
  EXPECT_THAT(LoadCheckpoint(twice), StatusIs(StatusCode::kInvalidArgument, HasSubstr("twice")));
  MemorySource empty = CriuImages("containerd");
  Edit<image::FileEntry>(empty, "files", "files.img", [](Files& files) {
    for (image::FileEntry& file : files) file.clear_reg();
  });
  EXPECT_THAT(LoadCheckpoint(empty), StatusIs(StatusCode::kInvalidArgument, HasSubstr("FD_REG")));
}

TEST(CheckpointImagesTest, SaysWhatCannotBeRestored) {
  using Ids = std::vector<image::TaskKobjIdsEntry>;
  MemorySource shared = CriuImages("containerd");
  Edit<image::TaskKobjIdsEntry>(shared, "ids", "ids-23.img", [](Ids& ids) { ids[0].set_vm_id(2); });
  EXPECT_THAT(LoadCheckpoint(shared), StatusIs(StatusCode::kUnimplemented, HasSubstr("memory")));
  MemorySource nested = CriuImages("containerd");
  Edit<image::TaskKobjIdsEntry>(nested, "ids", "ids-23.img",
                                [](Ids& ids) { ids[0].set_ipc_ns_id(99); });
  EXPECT_THAT(LoadCheckpoint(nested),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("ids-23.img")));
  MemorySource next = CriuImages("containerd");
  image::InventoryEntry inventory;
  inventory.set_img_version(3);
  ImageFileBuilder file("inventory");
  ASSERT_THAT(file.Add(inventory), IsOk());
  next.content["inventory.img"] = file.bytes();
  EXPECT_THAT(LoadCheckpoint(next), StatusIs(StatusCode::kUnimplemented, HasSubstr("version 3")));
}

TEST(CheckpointImagesTest, TakesStdioOnlyAsAListOfTexts) {
  for (const std::string text : {"", "{}", "[1]", "[\"pipe:[1]\"", "[[[["}) {
    MemorySource source = CriuImages("containerd");
    source.content["descriptors.json"] = text;
    EXPECT_THAT(LoadCheckpoint(source),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("descriptors.json")))
        << text;
  }
  MemorySource source = CriuImages("containerd");
  source.content.erase("descriptors.json");
  EXPECT_TRUE(LoadCheckpoint(source)->stdio.empty());
}

}  // namespace
}  // namespace stasis::engine
