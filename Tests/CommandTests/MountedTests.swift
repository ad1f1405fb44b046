// Goal: the commands tell the same of a filesystem whether it is mounted or not, and leave the one who has it mounted alone.
// Method: the built command mounts an image; this process works in it; the other commands are asked about both.
// Skipped where nothing can be mounted.

import Device
import Format
import Glibc
import Testing

private let canMount = geteuid() == 0 && access("/dev/fuse", R_OK | W_OK) == 0

/// An image, mounted until the end of the test.
private final class Mounted {
    let image = temporaryPath("image")
    let directory = temporaryPath("mount")
    private var isMounted = false

    init() throws {
        #expect(daybook("mkfs", "--size", "128M", "-L", "mounted", image).status == 0)
        mkdir(directory, 0o755)
        try mount()
    }
    deinit {
        if isMounted { unmount() }
        rmdir(directory)
        unlink(image)
    }

    func mount() throws {
        let mounted = daybook("mount", image, directory)
        try #require(mounted.status == 0, "\(mounted.errors)")
        isMounted = true
    }

    /// Returns when the daemon has ended.
    func unmount() {
        isMounted = false
        _ = system("umount '\(directory)'")
        guard let device = try? FileDevice(path: image, access: .readOnly) else { return }
        for _ in 0..<500 where ImageLock.hasWriter(descriptor: device.descriptor) { usleep(10_000) }
    }

    func write(_ name: String, _ text: String) {
        let descriptor = open(directory + "/" + name, O_WRONLY | O_CREAT, 0o644)
        precondition(Glibc.write(descriptor, text, text.utf8.count) == text.utf8.count, "\(name): \(errno)")
        close(descriptor)
    }
}

@Suite(.enabled(if: canMount, "not root, or no /dev/fuse"), .serialized, .timeLimit(.minutes(2)))
struct MountedFilesystems {
    @Test func theSameMountedAndNot() throws {
        let mounted = try Mounted()
        mkdir(mounted.directory + "/sub", 0o700)
        mounted.write("sub/file", "hello")
        symlink("sub/file", mounted.directory + "/link")
        link(mounted.directory + "/sub/file", mounted.directory + "/second")

        // Whatever was done a moment ago is there.
        let log = daybook("log", mounted.directory)
        #expect(log.status == 0)
        #expect(log.lines.map { $0.split(separator: " ")[5] } == ["mkdir", "create", "write", "symlink", "link"])
        #expect(daybook("log", mounted.directory + "/sub/file").lines.count == 3)
        #expect(daybook("log", mounted.directory + "/sub", "file").lines.count == 3)
        #expect(daybook("log", mounted.image).output == log.output)
        #expect(daybook("show", mounted.directory, "3").output.contains("/sub/file"))
        let stat = daybook("stat", mounted.directory).output
        #expect(stat.contains("in use, mounted on \(mounted.directory)"))

        let live = daybook("digest", mounted.directory)
        #expect(live.status == 0)
        #expect(daybook("digest", mounted.image).output == live.output)
        #expect(daybook("digest", mounted.directory, "--at", "5").output == live.output)
        #expect(daybook("digest", mounted.directory + "/sub").output == daybook("digest", mounted.directory + "/sub", "--at", "5").output)

        mounted.unmount()
        #expect(daybook("stat", mounted.image).output.contains("state             clean\n"))
        #expect(daybook("digest", mounted.image).output == live.output)
        #expect(daybook("log", "--limit", "5", mounted.image).output == log.output)
    }

    @Test func aSecondWriterIsToldWhoHoldsIt() throws {
        let mounted = try Mounted()
        let other = temporaryPath("second")
        mkdir(other, 0o755)
        defer { rmdir(other) }
        let second = daybook("mount", mounted.image, other)
        #expect(second.status == 32)
        #expect(second.errors.contains("mounted on \(mounted.directory)"))
        let format = daybook("mkfs", "-f", mounted.image)
        #expect(format.status == 1)
        #expect(format.errors.contains("in use: mounted on \(mounted.directory) by daybook (pid "))
    }

    @Test func thePastBesideThePresent() throws {
        let mounted = try Mounted()
        mounted.write("file", "one")
        let then = daybook("digest", mounted.directory).output
        let last = daybook("log", mounted.directory).lines.count
        unlink(mounted.directory + "/file")
        let past = temporaryPath("past")
        mkdir(past, 0o755)
        defer { rmdir(past) }
        let mount = daybook("mount", "-o", "at=\(last)", mounted.image, past)
        try #require(mount.status == 0, "\(mount.errors)")
        defer { _ = system("umount '\(past)'") }
        #expect(ProcessFiles.contents(past + "/file") == Array("one".utf8))
        #expect(daybook("digest", past).output == then)
        #expect(access(mounted.directory + "/file", F_OK) != 0)
        #expect(open(past + "/new", O_WRONLY | O_CREAT, 0o644) < 0 && errno == EROFS)
    }
}
