// stasis image: makes the OCI image of an archive, and pushes it to a registry or writes it out.
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "archive/archive.h"
#include "archive/checkpoint_image.h"
#include "archive/image_reference.h"
#include "archive/oci_layout.h"
#include "archive/registry.h"
#include "cmd/stasis/commands.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string archive, push, output, auth_file;
  bool plain_http = false, json = false;
};

void Print(const Options& options, const std::string& name, const std::string& digest,
           std::uint64_t layer_bytes, std::uint64_t uploaded_bytes) {
  if (options.json) {
    const nlohmann::json json = {{"image", name},
                                 {"digest", digest},
                                 {"layerBytes", layer_bytes},
                                 {"uploadedBytes", uploaded_bytes}};
    std::printf("%s\n", JsonText(json).c_str());
    return;
  }
  std::printf("%s@%s, %s\n", OneLine(name).c_str(), digest.c_str(), Bytes(layer_bytes).c_str());
}

Status Push(const Options& options, const archive::Archive& source,
            const archive::CheckpointImage& image) {
  ASSIGN_OR_RETURN(const archive::ImageReference reference,
                   archive::ParseImageReference(options.push));
  Progress progress("upload");
  ASSIGN_OR_RETURN(const archive::PushReport report,
                   archive::PushImage(source, image, reference,
                                      {.plain_http = options.plain_http,
                                       .auth_file = options.auth_file,
                                       .progress = std::ref(progress)}));
  Print(options, reference.Text(), report.manifest_digest, image.layer_size, report.uploaded_bytes);
  return OkStatus();
}

Status MakeImage(const Options& options) {
  if (!options.push.empty()) {  // before the archive is read for its digest
    RETURN_IF_ERROR(archive::ParseImageReference(options.push).status());
  }
  ASSIGN_OR_RETURN(const auto source, OpenArchive(options.archive));
  Result<archive::CheckpointImage> described = [&]() -> Result<archive::CheckpointImage> {
    Progress progress("hashing");
    // Who pulls the image checks it against digests of what is read here.
    RETURN_IF_ERROR(archive::CheckUnaltered(*source, std::ref(progress)));
    return archive::DescribeImage(*source, std::ref(progress));
  }();
  ASSIGN_OR_RETURN(const archive::CheckpointImage image, std::move(described));
  if (!options.push.empty()) return Push(options, *source, image);
  RETURN_IF_ERROR(archive::WriteOciLayout(*source, image, "latest", options.output));
  Print(options, options.output, image.manifest_digest, image.layer_size, 0);
  return OkStatus();
}

}  // namespace

void AddImage(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "image", "Makes an OCI image of an archive, from which runtimes restore the container.");
  command->add_option("archive", options->archive, "The archive")->required();
  CLI::Option_group* where = command->add_option_group("where", "Where the image goes");
  where->add_option("--push", options->push, "A name in a registry: REGISTRY/NAME:TAG");
  where->add_option("--output", options->output,
                    "A new OCI image layout: a tar if the name ends in .tar, else a folder");
  where->require_option(1);
  command->add_option("--authfile", options->auth_file,
                      "Credentials as `docker login` or `podman login` keeps them; without it "
                      "$REGISTRY_AUTH_FILE or ~/.docker/config.json");
  command->add_flag("--plain-http", options->plain_http,
                    "The registry has no TLS (never asked of one on this host)");
  command->add_flag("--json", options->json, "The result as JSON");
  command->footer(
      "Examples: stasis image checkpoint.tar --push registry.example/team/counter:saved\n"
      "          stasis image checkpoint.tar --output counter-oci.tar");
  command->callback([options, &exit_code] { exit_code = Report(MakeImage(*options)); });
}

}  // namespace stasis::cli
