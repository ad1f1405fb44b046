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

    /// A block device is mounted as fuseblk, and then the kernel passes sync(2) on, and umount(8) waits for the clean checkpoint.
    @Test func aBlockDeviceHearsOfSync() throws {
        let image = temporaryPath("device")
        let directory = temporaryPath("mount")
        let descriptor = open(image, O_RDWR | O_CREAT, 0o600)
        ftruncate(descriptor, 128 << 20)
        close(descriptor)
        mkdir(directory, 0o755)
        defer {
            unlink(image)
            rmdir(directory)
        }
        let stream = popen("losetup -f --show '\(image)' 2>/dev/null", "r")!
        var line = [CChar](repeating: 0, count: 256)
        let named = fgets(&line, 256, stream) != nil
        guard pclose(stream) == 0 && named else {
            print("skipped: no loop device")
            return
        }
        let device = String(decoding: line.prefix { $0 > 32 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { _ = system("losetup -d '\(device)'") }
        #expect(daybook("mkfs", device).status == 0)
        let mounted = daybook("mount", "-o", "commit=3600", device, directory)
        try #require(mounted.status == 0, "\(mounted.errors)")
        let file = open(directory + "/file", O_WRONLY | O_CREAT, 0o644)
        close(file)
        // Asked of the device, which commits nothing by being asked.
        #expect(daybook("log", device).lines.count == 0)
        sync()
        #expect(daybook("log", device).lines.count == 1)
        try #require(system("umount '\(directory)'") == 0)
        #expect(daybook("stat", device).output.contains("state             clean\n"))
    }

    @Test func syncCommits() throws {
        let mounted = try Mounted()
        mounted.unmount()
        let again = daybook("mount", "-o", "commit=3600", mounted.image, mounted.directory)
        try #require(again.status == 0, "\(again.errors)")
        defer { mounted.unmount() }
        mounted.write("file", "hello")
        #expect(daybook("log", mounted.image).lines.count == 0)
        #expect(daybook("sync", mounted.directory).status == 0)
        #expect(daybook("log", mounted.image).lines.count == 2)
        let elsewhere = daybook("sync", "/tmp")
        #expect(elsewhere.status == 1 && elsewhere.errors.contains("not in a mounted Daybook filesystem"))
    }

    @Test func filesWithoutNames() throws {
        let mounted = try Mounted()
        let temporary = Int32(0o20200000)  // O_TMPFILE
        let file = open(mounted.directory, temporary | O_RDWR, 0o640)
        try #require(file >= 0, "\(String(cString: strerror(errno)))")
        #expect(Glibc.write(file, "hello", 5) == 5)
        var status = Glibc.stat()
        #expect(fstat(file, &status) == 0 && status.st_nlink == 0 && status.st_mode == 0o100640)
        #expect(linkat(AT_FDCWD, "/proc/self/fd/\(file)", AT_FDCWD, mounted.directory + "/named", 0x400) == 0)
        #expect(fstat(file, &status) == 0 && status.st_nlink == 1)
        close(file)
        #expect(ProcessFiles.contents(mounted.directory + "/named") == Array("hello".utf8))

        let lost = open(mounted.directory, temporary | O_RDWR, 0o600)
        #expect(Glibc.write(lost, "gone", 4) == 4)
        close(lost)
        mounted.unmount()
        let check = daybook("fsck", "-n", "-f", mounted.image)
        #expect(check.status == 0 && check.output.contains("2 inodes"), "\(check.output)")
    }

    /// copy_file_range shares blocks: the copy costs no space, and neither file sees what is written to the other.
    @Test func copiesShareBlocks() throws {
        let mounted = try Mounted()
        let bytes = [UInt8]((0..<(8 << 20)).map { UInt8(truncatingIfNeeded: $0 / 4096 &+ $0) })
        let from = open(mounted.directory + "/from", O_RDWR | O_CREAT, 0o644)
        #expect(Glibc.write(from, bytes, bytes.count) == bytes.count)
        func free() -> UInt64 {
            var status = statvfs()
            statvfs(mounted.directory, &status)
            return UInt64(status.f_bfree)
        }
        let before = free()
        // cp(1) uses copy_file_range.
        try #require(system("cp '\(mounted.directory)/from' '\(mounted.directory)/to'") == 0)
        #expect(before - free() < 16)
        #expect(ProcessFiles.contents(mounted.directory + "/to") == bytes)
        #expect(pwrite(from, [UInt8](repeating: 7, count: 10_000), 10_000, 5000) == 10_000)
        close(from)
        #expect(ProcessFiles.contents(mounted.directory + "/to") == bytes)
        mounted.unmount()
        let log = daybook("log", mounted.image).output
        #expect(log.contains(" clone ") && log.contains("source /from"), "\(log)")
        #expect(daybook("fsck", "-n", "-f", "--data", mounted.image).status == 0)
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
