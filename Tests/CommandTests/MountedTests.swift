// Goal: the commands tell the same of a filesystem whether it is mounted or not, and leave the one who has it mounted alone.
// Method: the built command mounts an image; this process works in it; the other commands are asked about both.
// Skipped where nothing can be mounted.

import Device
import Format
import Glibc
import Testing
import Volume

// <sys/xattr.h> is in no module.
@_silgen_name("setxattr")
private func setxattr(_: UnsafePointer<CChar>, _: UnsafePointer<CChar>, _: UnsafeRawPointer?, _: Int, _: Int32) -> Int32
@_silgen_name("getxattr")
private func getxattr(_: UnsafePointer<CChar>, _: UnsafePointer<CChar>, _: UnsafeMutableRawPointer?, _: Int) -> Int

let canMount = geteuid() == 0 && access("/dev/fuse", R_OK | W_OK) == 0

/// An image, mounted until the end of the test.
final class Mounted {
    let options: String
    let image = temporaryPath("image")
    let directory = temporaryPath("mount")
    private var isMounted = false

    init(options: String = "rw") throws {
        self.options = options
        #expect(daybook("mkfs", "--size", "128M", "-L", "mounted", image).status == 0)
        mkdir(directory, 0o755)
        try mount()
    }
    deinit {
        if isMounted { unmount() }
        rmdir(directory)
        unlink(image)
    }

    func mount(_ options: String? = nil) throws {
        let mounted = daybook("mount", "-o", options ?? self.options, image, directory)
        try #require(mounted.status == 0, "\(mounted.errors)")
        isMounted = true
    }

    /// Returns when the daemon has ended.
    func unmount() {
        isMounted = false
        // A program that another test starts holds whatever descriptors are open at that moment, until it executes.
        var attempts = 100
        while system("umount '\(directory)' 2>/dev/null") != 0 && attempts > 0 {
            attempts -= 1
            usleep(50_000)
        }
        waitForDaemon()
    }

    /// After the daemon was killed.
    func detach() {
        isMounted = false
        _ = system("umount -l '\(directory)' 2>/dev/null")
        waitForDaemon()
    }

    func waitForDaemon() {
        guard let device = try? FileDevice(path: image, access: .readOnly) else { return }
        for _ in 0..<500 where ImageLock.hasWriter(descriptor: device.descriptor) { usleep(10_000) }
    }

    var daemon: pid_t? {
        ProcessFiles.names("/proc").compactMap { pid_t($0) }.first { process in
            let words = (ProcessFiles.contents("/proc/\(process)/cmdline") ?? []).split(separator: 0)
            return ProcessFiles.contents("/proc/\(process)/comm").map { $0 == Array("daybook\n".utf8) } == true
                && words.contains { $0.elementsEqual(image.utf8) }
        }
    }

    func write(_ name: String, _ text: String) {
        let descriptor = open(directory + "/" + name, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
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
    // MARK: access control lists

    private func set(_ path: String, _ name: String, _ value: [UInt8]) -> Int32 {
        setxattr(path, "system.posix_acl_" + name, value, value.count, 0) == 0 ? 0 : errno
    }
    private func get(_ path: String, _ name: String) -> [UInt8]? {
        var value = [UInt8](repeating: 0, count: 4096)
        let count = getxattr(path, "system.posix_acl_" + name, &value, value.count)
        return count < 0 ? nil : Array(value.prefix(count))
    }
    private func mode(_ path: String) -> UInt32 {
        var status = stat()
        return stat(path, &status) == 0 ? status.st_mode & 0o7777 : .max
    }
    /// The exit status of a shell command by a user who owns nothing here.
    private func nobody(_ command: String) -> Int32 {
        (system("su nobody -s /bin/sh -c '\(command)' >/dev/null 2>&1") >> 8) & 0xff
    }
    /// A list with what user 65534 may do.
    private func list(_ mode: UInt16, nobody: UInt16, mask: UInt16) -> [UInt8] {
        AccessControlList([
            .init(tag: .owner, permissions: mode >> 6), .init(tag: .user, permissions: nobody, id: 65534),
            .init(tag: .owningGroup, permissions: mode >> 3 & 7), .init(tag: .mask, permissions: mask),
            .init(tag: .others, permissions: mode & 7),
        ])!.bytes
    }

    @Test func theKernelEnforcesLists() throws {
        let mounted = try Mounted()
        let file = mounted.directory + "/file"
        mounted.write("file", "secret")
        chmod(mounted.directory, 0o755)
        chmod(file, 0o600)
        #expect(nobody("cat \(file)") != 0)
        #expect(set(file, "access", list(0o600, nobody: 4, mask: 4)) == 0)
        #expect(mode(file) == 0o640)
        #expect(nobody("cat \(file)") == 0)
        #expect(nobody("echo more >> \(file)") != 0)
        // The group bits are the mask now.
        chmod(file, 0o600)
        #expect(get(file, "access") == list(0o600, nobody: 4, mask: 0))
        #expect(nobody("cat \(file)") != 0)
        chmod(file, 0o666)
        #expect(nobody("cat \(file)") == 0)
        #expect(nobody("echo more >> \(file)") != 0, "others may, but the entry for one user counts first")
        #expect(set(file, "access", list(0o666, nobody: 0, mask: 6)) == 0)
        #expect(nobody("cat \(file)") != 0)
        mounted.unmount()
        try mounted.mount()
        #expect(get(file, "access") == list(0o666, nobody: 0, mask: 6))
        #expect(nobody("cat \(file)") != 0)

        #expect(set(file, "default", list(0o600, nobody: 4, mask: 4)) == EACCES)
        #expect(set(file, "access", [2, 0, 0, 0, 1]) == EINVAL)
        #expect(setxattr(file, "system.other", "x", 1, 0) != 0 && errno == EOPNOTSUPP)
    }

    @Test func theKernelLeavesInheritanceAndUmaskToUs() throws {
        let mounted = try Mounted()
        let directory = mounted.directory + "/d"
        let before = umask(0o027)
        defer { umask(before) }
        mkdir(directory, 0o777)
        #expect(mode(directory) == 0o750)
        close(open(directory + "/plain", O_WRONLY | O_CREAT | O_CLOEXEC, 0o666))
        #expect(mode(directory + "/plain") == 0o640)
        #expect(set(directory, "default", list(0o775, nobody: 7, mask: 7)) == 0)
        close(open(directory + "/file", O_WRONLY | O_CREAT | O_CLOEXEC, 0o666))
        #expect(mode(directory + "/file") == 0o664)
        #expect(get(directory + "/file", "access") == list(0o674, nobody: 7, mask: 6))
        mkdir(directory + "/sub", 0o777)
        #expect(get(directory + "/sub", "access") == list(0o775, nobody: 7, mask: 7))
        #expect(get(directory + "/sub", "default") == list(0o775, nobody: 7, mask: 7))
        mkfifo(directory + "/sub/fifo", 0o600)
        #expect(get(directory + "/sub/fifo", "access") == list(0o670, nobody: 7, mask: 0))
        mounted.unmount()

        try mounted.mount("noacl")
        #expect(get(directory, "default") == nil && errno == EOPNOTSUPP)
        close(open(directory + "/without", O_WRONLY | O_CREAT | O_CLOEXEC, 0o666))
        #expect(mode(directory + "/without") == 0o640)
    }

    @Test(.enabled(if: system("command -v setfacl >/dev/null") == 0, "no setfacl"))
    func setgidGoesWhenAnOutsiderSetsAList() throws {
        let mounted = try Mounted()
        chmod(mounted.directory, 0o755)
        for (group, expected) in [(gid_t(1), UInt32(0o774)), (65534, 0o2774)] {
            let file = mounted.directory + "/file\(group)"
            mounted.write("file\(group)", "x")
            chown(file, 65534, group)
            chmod(file, 0o2755)
            #expect(nobody("setfacl -m u:2:rwx,o::4 \(file)") == 0)
            #expect(mode(file) == expected)
        }
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
