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

    @Test func remounting() throws {
        let mounted = try Mounted()
        mounted.write("file", "one")
        func remount(_ options: String) -> Finished {
            daybook("mount", "-o", "remount," + options, mounted.image, mounted.directory)
        }
        func create() -> Int32 {
            let descriptor = open(mounted.directory + "/new", O_WRONLY | O_CREAT, 0o644)
            defer { close(descriptor) }
            return descriptor < 0 ? errno : 0
        }
        let readOnly = remount("ro,commit=3")
        #expect(readOnly.status == 0)
        #expect(readOnly.errors.contains("'commit' stays as it is"))
        #expect(create() == EROFS)
        // What was written is durable: a crash from here on loses nothing.
        let records = daybook("log", mounted.directory).lines.count
        #expect(daybook("log", mounted.image).lines.count == records)
        // Reading leaves no trace, once the daemon has heard of it.
        usleep(100_000)
        #expect(ProcessFiles.contents(mounted.directory + "/file") == Array("one".utf8))
        #expect(daybook("log", mounted.directory).lines.count == records)

        #expect(remount("rw,noexec").status == 0)
        #expect(create() == 0)
        #expect(MountedFilesystem.at(mounted.directory)?.flags.contains("noexec") == true)
        #expect(remount("rw").status == 0)
        #expect(MountedFilesystem.at(mounted.directory)?.flags.contains("noexec") == false)

        let elsewhere = daybook("mount", "-o", "remount,ro", mounted.image, "/tmp")
        #expect(elsewhere.status == 32)
        #expect(elsewhere.errors.contains("is not mounted on /tmp"))
    }

    /// Its daemon has the image open for reading only.
    @Test func whatWasMountedReadOnlyStaysSo() throws {
        let mounted = try Mounted()
        mounted.unmount()
        let directory = temporaryPath("read-only")
        mkdir(directory, 0o755)
        defer { rmdir(directory) }
        try #require(daybook("mount", "-o", "ro", mounted.image, directory).status == 0)
        defer { _ = system("umount '\(directory)'") }
        let remount = daybook("mount", "-o", "remount,rw", mounted.image, directory)
        #expect(remount.status == 32)
        #expect(remount.errors.contains("unmount and mount it again"))
        #expect(open(directory + "/new", O_WRONLY | O_CREAT, 0o644) < 0 && errno == EROFS)
    }

    /// The kernel is not told of a mode by the answer to a write, and has been told to believe the old one for a year.
    /// generic/355 and 683 to 685 of xfstests.
    @Test(arguments: [
        "echo >>file", "fallocate -l 100000 file", "dd if=/dev/zero of=file bs=4096 count=1 oflag=direct conv=notrunc",
    ])
    func theKernelHearsThatPrivilegesAreGone(change: String) throws {
        let mounted = try Mounted()
        mounted.write("file", "program")
        let path = mounted.directory + "/file"
        #expect(chmod(path, 0o6777) == 0)
        // stat(1) asks for the mode alone: other attributes the kernel knows to be old.
        let stranger = "setpriv --reuid 1234 --regid 1234 --clear-groups"
        for command in ["test $(stat -c %a file) = 6777", "\(stranger) sh -c '\(change)' 2>&1", "test $(stat -c %a file) = 777"] {
            #expect(system("cd '\(mounted.directory)' && \(command)") == 0, "\(command)")
        }
    }

    /// strictatime: each open makes the kernel forget what it could answer by itself. generic/003 of xfstests.
    @Test func exactAccessTimes() throws {
        let mounted = try Mounted()
        mounted.unmount()
        try #require(daybook("mount", "-o", "strictatime", mounted.image, mounted.directory).status == 0)
        defer { _ = system("umount '\(mounted.directory)'") }
        mounted.write("file", "one")
        func accessed() -> timespec {
            var status = stat()
            #expect(stat(mounted.directory + "/file", &status) == 0)
            return status.st_atim
        }
        for _ in 0..<3 {
            let before = accessed()
            usleep(10_000)
            #expect(ProcessFiles.contents(mounted.directory + "/file") == Array("one".utf8))
            let after = accessed()
            #expect((after.tv_sec, after.tv_nsec) > (before.tv_sec, before.tv_nsec))
        }
    }
}
