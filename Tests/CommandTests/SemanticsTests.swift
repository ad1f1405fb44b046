// Goal: a mounted filesystem keeps the rules of POSIX and Linux: what suites from outside have found, or would look for.
// Method: the built command mounts an image; this process, at times with another user's rights, works in it; the image is checked
// at the end. Skipped where nothing can be mounted.

import CTestSupport
import Device
import Format
import Glibc
import Memory
import Testing

// MARK: helpers

/// 0, or the errno of a call that returns -1.
private func attempt(_ call: () -> Int32) -> Int32 { call() < 0 ? errno : 0 }

private final class Outcome: @unchecked Sendable {
    var value: Int32 = -1
}

/// What `body` returns with the rights of another user, on a thread of its own.
private func asUser(_ user: uid_t, groups: [gid_t] = [], _ body: @escaping @Sendable () -> Int32) -> Int32 {
    let outcome = Outcome()
    Thread(name: "other-user") {
        let error = test_become(user, user, groups, groups.count)
        outcome.value = error == 0 ? body() : -error
    }.join()
    return outcome.value
}

/// Who is 1001 with 1000 among the groups, and who is 1001 without.
private let people: [(name: String, user: uid_t, groups: [gid_t])] = [
    ("root", 0, []), ("owner", 1000, []), ("member", 1001, [1000]), ("stranger", 1001, []),
]

private func status(_ path: String) -> stat {
    var result = stat()
    #expect(lstat(path, &result) == 0, "\(path): \(errno)")
    return result
}
private func status(_ descriptor: Int32) -> stat {
    var result = stat()
    #expect(fstat(descriptor, &result) == 0)
    return result
}
private func permissions(_ path: String) -> mode_t { status(path).st_mode & 0o7777 }

/// A mount, and what is often done in it. Paths are relative to it.
private final class Place: @unchecked Sendable {
    let mounted: Mounted
    var root: String { mounted.directory }

    init(options: String = "rw") throws {
        mounted = try Mounted(options: options)
        chmod(root, 0o777)
    }

    subscript(_ path: String) -> String { root + "/" + path }

    /// A fresh file of two blocks.
    func make(_ path: String, mode: mode_t = 0o644, owner: uid_t = 0, size: Int = 8192) {
        unlink(self[path])
        let descriptor = open(self[path], O_RDWR | O_CREAT | O_EXCL, 0o600)
        precondition(descriptor >= 0, "\(path): \(errno)")
        let bytes = [UInt8](repeating: 0x61, count: size)
        #expect(write(descriptor, bytes, size) == size)
        close(descriptor)
        chown(self[path], owner, owner)
        chmod(self[path], mode)
    }

    func contents(_ path: String) -> [UInt8]? { ProcessFiles.contents(self[path]) }

    /// Unmounts; the image must be sound.
    func finish() {
        mounted.unmount()
        let check = daybook("fsck", "-n", "-f", mounted.image)
        #expect(check.status == 0, "\(check.output)\(check.errors)")
    }
}

/// Opens the path for the time of `body`, which returns 0 or an errno.
private func opened(_ path: String, _ flags: Int32, _ body: (Int32) -> Int32) -> Int32 {
    let descriptor = open(path, flags, 0o666)
    guard descriptor >= 0 else { return errno }
    defer { close(descriptor) }
    return body(descriptor)
}

/// Ways to change a file's content.
private enum ContentChange: CaseIterable {
    case write, direct, truncate, openTruncating, allocate, punch, copy, map

    func apply(_ path: String, source: String) -> Int32 {
        switch self {
        case .write: opened(path, O_WRONLY) { Glibc.write($0, "b", 1) == 1 ? 0 : errno }
        case .direct:
            opened(path, O_WRONLY | test_o_direct()) { descriptor in
                AlignedBuffer(count: 4096).bytes.withPointer { Glibc.write(descriptor, $0, 4096) == 4096 ? 0 : errno }
            }
        case .truncate: attempt { Glibc.truncate(path, 100) }
        case .openTruncating: opened(path, O_WRONLY | O_TRUNC) { _ in 0 }
        case .allocate: opened(path, O_WRONLY) { test_fallocate($0, 0, 0, 4096) }
        case .punch: opened(path, O_WRONLY) { test_fallocate($0, 3, 0, 4096) }
        case .copy:
            opened(source, O_RDONLY) { from in
                opened(path, O_WRONLY) { test_copy_range(from, 0, $0, 0, 4096) == 4096 ? 0 : EIO }
            }
        case .map:
            opened(path, O_RDWR) { descriptor in
                let address = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)!
                guard address != MAP_FAILED else { return errno }
                address.storeBytes(of: 0x62, as: UInt8.self)
                defer { munmap(address, 4096) }
                return attempt { msync(address, 4096, MS_SYNC) }
            }
        }
    }
}

private extension RawBytes {
    func withPointer<R>(_ body: (UnsafeMutableRawPointer) -> R) -> R { body(pointer) }
}

@Suite(.enabled(if: canMount, "not root, or no /dev/fuse"), .serialized, .timeLimit(.minutes(5)))
struct Semantics {
    // MARK: permissions

    @Test func stickyDirectories() throws {
        let place = try Place()
        mkdir(place["tmp"], 0o700)
        chmod(place["tmp"], 0o1777)
        place.make("tmp/file", mode: 0o666, owner: 1000)
        place.make("tmp/mine", mode: 0o666, owner: 1001)
        #expect(asUser(1001) { attempt { unlink(place["tmp/file"]) } } == EPERM)
        #expect(asUser(1001) { attempt { rename(place["tmp/file"], place["tmp/other"]) } } == EPERM)
        #expect(asUser(1001) { attempt { rename(place["tmp/mine"], place["tmp/file"]) } } == EPERM)
        #expect(asUser(1001) { test_rename(place["tmp/mine"], place["tmp/file"], 2) } == EPERM)
        #expect(asUser(1001) { test_set_xattr(place["tmp"], "user.a", "1", 1, 0) } == EPERM)
        #expect(asUser(1000) { attempt { rename(place["tmp/file"], place["tmp/other"]) } } == 0)
        #expect(asUser(1000) { attempt { unlink(place["tmp/other"]) } } == 0)
        place.finish()
    }

    /// Expected as observed on ext4, for writes of all kinds: root may keep what he likes; from all others suid goes, and sgid if the
    /// group may execute or the writer is not in it.
    @Test func privilegesGoWhenContentChanges() throws {
        let place = try Place()
        place.make("source")
        for mode in [0o6777, 0o6767, 0o2767, 0o2677, 0o4766] as [mode_t] {
            for change in ContentChange.allCases {
                // Stores into a mapping are nobody's write(2).
                for (name, user, groups) in people where change != .map {
                    place.make("file", mode: mode, owner: 1000)
                    let outcome = asUser(user, groups: groups) { change.apply(place["file"], source: place["source"]) }
                    #expect(outcome == 0, "\(change) of \(String(mode, radix: 8)) by \(name)")
                    var left = mode
                    if user != 0 {
                        left &= ~0o4000
                        if mode & 0o010 != 0 || name == "stranger" { left &= ~0o2000 }
                    }
                    #expect(permissions(place["file"]) == left, "\(change) of \(String(mode, radix: 8)) by \(name)")
                }
            }
        }
        place.finish()
    }

    /// Capabilities of a file go with any change of its content or owner, root's own included.
    @Test func capabilitiesGo() throws {
        let place = try Place()
        place.make("source")
        // vfs_cap_data of revision 2: net_bind_service, effective.
        let capabilities: [UInt8] = [1, 0, 0, 2, 0, 4, 0, 0] + [UInt8](repeating: 0, count: 12)
        func set() {
            place.make("file", mode: 0o777, owner: 1000)
            #expect(test_set_xattr(place["file"], "security.capability", capabilities, capabilities.count, 0) == 0)
            #expect(test_get_xattr(place["file"], "security.capability", nil, 0) == 20)
        }
        func areGone() -> Bool { test_get_xattr(place["file"], "security.capability", nil, 0) == -Int64(ENODATA) }
        for change in ContentChange.allCases where change != .map {
            for (name, user, groups) in people {
                set()
                #expect(asUser(user, groups: groups) { change.apply(place["file"], source: place["source"]) } == 0)
                #expect(areGone(), "\(change) by \(name)")
            }
        }
        set()
        chown(place["file"], 0, 0)
        #expect(areGone())
        place.finish()
    }

    @Test func privilegesGoWithTheOwner() throws {
        let place = try Place()
        for kind in [S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR] {
            for (user, group) in [(1001, 1001), (.max, 1001), (1000, 1000), (.max, .max)] as [(uid_t, gid_t)] {
                #expect(mknod(place["file"], kind | 0o600, UInt(test_device(1, 3))) == 0)
                chown(place["file"], 1000, 1000)
                chmod(place["file"], 0o6755)
                #expect(chown(place["file"], user, group) == 0)
                #expect(permissions(place["file"]) == 0o755)
                unlink(place["file"])
            }
        }
        mkdir(place["directory"], 0o755)
        chmod(place["directory"], 0o6755)
        chown(place["directory"], 1000, 1000)
        #expect(permissions(place["directory"]) == 0o6755)
        // Its owner may give a file to a group of his, and to nobody else.
        place.make("file", mode: 0o6755, owner: 1000)
        #expect(asUser(1000, groups: [1002]) { attempt { chown(place["file"], .max, 1002) } } == 0)
        #expect(permissions(place["file"]) == 0o755 && status(place["file"]).st_gid == 1002)
        #expect(asUser(1000) { attempt { chown(place["file"], .max, 1003) } } == EPERM)
        #expect(asUser(1000) { attempt { chown(place["file"], 1001, .max) } } == EPERM)
        #expect(asUser(1000) { attempt { chmod(place["file"], 0o2755) } } == 0)
        #expect(permissions(place["file"]) == 0o755, "sgid is not for those outside of the group")
        place.finish()
    }

    @Test func setgidDirectories() throws {
        let place = try Place()
        mkdir(place["shared"], 0o777)
        chown(place["shared"], 0, 1002)
        chmod(place["shared"], 0o2777)
        for (name, groups) in [("member", [1002]), ("other", [])] as [(String, [gid_t])] {
            let path = place["shared/" + name]
            #expect(asUser(1000, groups: groups) { opened(path, O_CREAT | O_WRONLY) { _ in 0 } } == 0)
            #expect(asUser(1000, groups: groups) { attempt { mkdir(path + ".d", 0o755) } } == 0)
            #expect(asUser(1000, groups: groups) { attempt { mkfifo(path + ".p", 0o644) } } == 0)
            #expect(asUser(1000, groups: groups) { attempt { symlink("x", path + ".l") } } == 0)
            for suffix in ["", ".d", ".p", ".l"] {
                #expect(status(path + suffix).st_gid == 1002 && status(path + suffix).st_uid == 1000)
            }
            #expect(permissions(path + ".d") & 0o2000 != 0)
            #expect(permissions(path) & 0o2000 == 0)
        }
        place.finish()
    }

    // MARK: times

    private struct Moved: OptionSet, CustomStringConvertible {
        let rawValue: Int
        static let accessed = Moved(rawValue: 1)
        static let modified = Moved(rawValue: 2)
        static let changed = Moved(rawValue: 4)
        var description: String { "\(contains(.accessed) ? "a" : "-")\(contains(.modified) ? "m" : "-")\(contains(.changed) ? "c" : "-")" }
    }

    /// Longer than a tick of the kernel's clock, by which times move that it keeps itself.
    private func letTimePass() { usleep(12_000) }

    /// Which times of `path` move while `body` runs.
    private func moved(_ path: String, _ body: () -> Int32) -> Moved {
        func differs(_ one: timespec, _ other: timespec) -> Bool { one.tv_sec != other.tv_sec || one.tv_nsec != other.tv_nsec }
        let before = status(path)
        letTimePass()
        let outcome = body()
        #expect(outcome == 0, "errno \(outcome)")
        let after = status(path)
        var result: Moved = []
        if differs(before.st_atim, after.st_atim) { result.insert(.accessed) }
        if differs(before.st_mtim, after.st_mtim) { result.insert(.modified) }
        if differs(before.st_ctim, after.st_ctim) { result.insert(.changed) }
        return result
    }

    @Test func changeAndModificationTimes() throws {
        let place = try Place()
        place.make("file")
        let file = place["file"]
        let both: Moved = [.modified, .changed]
        #expect(moved(file) { opened(file, O_WRONLY) { write($0, "b", 1) == 1 ? 0 : errno } } == both)
        #expect(moved(file) { opened(file, O_WRONLY) { write($0, "b", 0) == 0 ? 0 : errno } } == [])
        #expect(moved(file) { attempt { truncate(file, 8192) } } == both)
        #expect(moved(file) { attempt { truncate(file, 10_000) } } == both)
        for mode in [0, 1, 1, 3, 3, 0x10, 0x11] as [Int32] {
            #expect(moved(file) { opened(file, O_WRONLY) { test_fallocate($0, mode, 0, 4096) } } == both, "fallocate \(mode)")
        }
        #expect(moved(file) { opened(file, O_WRONLY | O_TRUNC) { _ in 0 } } == both)
        #expect(moved(file) { opened(file, O_WRONLY | O_TRUNC) { _ in 0 } } == both)
        #expect(moved(file) { attempt { chmod(file, 0o640) } } == .changed)
        #expect(moved(file) { attempt { chown(file, 5, 5) } } == .changed)
        #expect(moved(file) { attempt { chown(file, .max, .max) } } == .changed)
        #expect(moved(file) { test_set_xattr(file, "user.a", "1", 1, 0) } == .changed)
        #expect(moved(file) { test_remove_xattr(file, "user.a") } == .changed)
        #expect(moved(file) { attempt { link(file, place["second"]) } } == .changed)
        #expect(moved(file) { attempt { unlink(place["second"]) } } == .changed)
        #expect(moved(file) { attempt { rename(file, place["away"]) } | attempt { rename(place["away"], file) } } == .changed)
        #expect(moved(file) { attempt { utimes(file, nil) } } == [.accessed, .modified, .changed])

        mkdir(place["directory"], 0o755)
        let directory = place["directory"]
        for body: () -> Int32 in [
            { attempt { mkdir(directory + "/sub", 0o755) } }, { attempt { rmdir(directory + "/sub") } },
            { attempt { link(file, directory + "/file") } }, { attempt { rename(directory + "/file", directory + "/other") } },
            { attempt { unlink(directory + "/other") } }, { attempt { symlink("x", directory + "/link") } },
            { attempt { mkfifo(directory + "/fifo", 0o600) } }, { attempt { rename(directory + "/fifo", place["fifo"]) } },
        ] { #expect(moved(directory, body) == both) }
        #expect(moved(directory) { attempt { chmod(directory, 0o700) } } == .changed)

        // What is replaced or removed while open has lost a link, and knows when.
        for remove: () -> Int32 in [{ rename(place["fifo"], place["victim"]) }, { unlink(place["victim"]) }] {
            if access(place["victim"], F_OK) != 0 { place.make("victim") }
            let descriptor = open(place["victim"], O_RDONLY | O_NONBLOCK)
            let before = status(descriptor)
            letTimePass()
            #expect(remove() == 0)
            let after = status(descriptor)
            #expect(after.st_nlink == 0)
            #expect(after.st_ctim.tv_sec != before.st_ctim.tv_sec || after.st_ctim.tv_nsec != before.st_ctim.tv_nsec)
            close(descriptor)
        }
        place.finish()
    }

    @Test func timesOfLongAgoAndToCome() throws {
        let place = try Place()
        place.make("file")
        for seconds in [-9_000_000_000, -1, 0, 1, 2_147_483_648, 9_000_000_000] {
            var times = [timespec(tv_sec: seconds, tv_nsec: 1), timespec(tv_sec: seconds, tv_nsec: 999_999_999)]
            #expect(utimensat(AT_FDCWD, place["file"], &times, 0) == 0)
            let found = status(place["file"])
            #expect(found.st_atim.tv_sec == seconds && found.st_atim.tv_nsec == 1)
            #expect(found.st_mtim.tv_sec == seconds && found.st_mtim.tv_nsec == 999_999_999)
        }
        // Whoever may write may say "now"; only the owner may say when.
        place.make("shared", mode: 0o666, owner: 1000)
        #expect(asUser(1001) { attempt { utimes(place["shared"], nil) } } == 0)
        #expect(asUser(1001) {
            let times = [timeval(tv_sec: 1, tv_usec: 1), timeval(tv_sec: 1, tv_usec: 1)]
            return attempt { utimes(place["shared"], times) }
        } == EPERM)
        place.finish()
    }

    /// The daemon sees those reads that the kernel's cache does not answer: after a mount, the first.
    @Test(arguments: [("rw", true, false), ("noatime", false, false), ("strictatime", true, true)])
    func accessTimes(options: String, first: Bool, second: Bool) throws {
        let place = try Place(options: options)
        mkdir(place["directory"], 0o755)
        place.make("directory/file")
        symlink("file", place["directory/link"])
        func look(_ path: String) -> Int32 {
            switch status(path).st_mode & S_IFMT {
            case S_IFDIR: return ProcessFiles.names(path).isEmpty ? EIO : 0
            case S_IFLNK: return ProcessFiles.link(path) == nil ? EIO : 0
            default: return ProcessFiles.contents(path) == nil ? EIO : 0
            }
        }
        for expected in [first, second] {
            place.mounted.unmount()
            letTimePass()
            try place.mounted.mount()
            for name in ["directory", "directory/file", "directory/link"] {
                #expect(moved(place[name]) { look(place[name]) } == (expected ? .accessed : []), "\(name)")
            }
        }
        place.finish()
    }

    // MARK: names

    @Test func namesOfAnyBytes() throws {
        let place = try Place()
        // Every byte but NUL and the slash, in names as long as they may be.
        let bytes = (1...255).filter { $0 != 0x2f }.map { CChar(bitPattern: $0) }
        var names: [[CChar]] = []
        for turn in 0..<4 { names.append([CChar(0x61 + turn)] + bytes[(turn * 60)...] + bytes[..<(turn * 60)]) }
        names.append([CChar](repeating: 0x61, count: 255))
        let prefix = place.root.utf8CString.dropLast() + [0x2f]
        for name in names {
            #expect(name.count == 255)
            let path = Array(prefix + name + [0])
            let descriptor = open(path, O_CREAT | O_EXCL | O_WRONLY, 0o644)
            #expect(descriptor >= 0)
            close(descriptor)
            #expect(open(path, O_CREAT | O_EXCL | O_WRONLY, 0o644) < 0 && errno == EEXIST)
        }
        place.mounted.unmount()
        try place.mounted.mount()
        let listed = try #require(opendir(place.root))
        var found: Set<[CChar]> = []
        while let entry = readdir(listed) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { Array(UnsafeBufferPointer(start: $0, count: strlen($0))) }
            }
            found.insert(name)
        }
        closedir(listed)
        #expect(found == Set(names + [[0x2e], [0x2e, 0x2e]]))
        for name in names { #expect(unlink(Array(prefix + name + [0])) == 0) }

        let tooLong = place[String(repeating: "x", count: 256)]
        place.make("file")
        #expect(attempt { open(tooLong, O_CREAT | O_WRONLY, 0o644) } == ENAMETOOLONG)
        #expect(attempt { mkdir(tooLong, 0o755) } == ENAMETOOLONG)
        #expect(attempt { symlink("x", tooLong) } == ENAMETOOLONG)
        #expect(attempt { mkfifo(tooLong, 0o600) } == ENAMETOOLONG)
        #expect(attempt { link(place["file"], tooLong) } == ENAMETOOLONG)
        #expect(attempt { rename(place["file"], tooLong) } == ENAMETOOLONG)
        #expect(attempt { access(tooLong, F_OK) } == ENAMETOOLONG)
        place.finish()
    }

    @Test func symbolicLinks() throws {
        let place = try Place()
        for length in [1, 100, 1000, 2000, 4095] {
            let target = String(repeating: "t", count: length)
            #expect(symlink(target, place["link\(length)"]) == 0)
            #expect(status(place["link\(length)"]).st_size == length)
        }
        #expect(attempt { symlink(String(repeating: "t", count: 4096), place["long"]) } == ENAMETOOLONG)
        #expect(attempt { symlink("", place["empty"]) } == ENOENT)
        place.mounted.unmount()
        try place.mounted.mount()
        for length in [1, 100, 1000, 2000, 4095] {
            var buffer = [CChar](repeating: 0, count: 4096)
            #expect(readlink(place["link\(length)"], &buffer, 4096) == length)
            #expect(buffer.prefix(length).allSatisfy { $0 == 0x74 })
        }
        // A link has links and an owner of its own.
        #expect(link(place["link1"], place["second"]) == 0)
        #expect(status(place["link1"]).st_nlink == 2)
        #expect(lchown(place["link1"], 7, 8) == 0 && status(place["second"]).st_uid == 7)
        place.finish()
    }

    @Test func linkCounts() throws {
        let place = try Place()
        mkdir(place["a"], 0o755)
        mkdir(place["b"], 0o755)
        #expect(status(place["a"]).st_nlink == 2 && status(place.root).st_nlink == 4)
        mkdir(place["a/sub"], 0o755)
        #expect(status(place["a"]).st_nlink == 3)
        rename(place["a/sub"], place["b/sub"])
        #expect(status(place["a"]).st_nlink == 2 && status(place["b"]).st_nlink == 3)
        // A directory for a file, and back.
        place.make("file")
        #expect(test_rename(place["file"], place["b/sub"], 2) == 0)
        #expect(status(place["b"]).st_nlink == 2 && status(place.root).st_nlink == 5)
        #expect(test_rename(place["file"], place["b/sub"], 2) == 0)
        #expect(status(place["b"]).st_nlink == 3 && status(place.root).st_nlink == 4)
        mkdir(place["c"], 0o755)
        #expect(rename(place["c"], place["b/sub"]) == 0)
        #expect(status(place["b"]).st_nlink == 3 && status(place.root).st_nlink == 4)
        rmdir(place["b/sub"])
        #expect(status(place["b"]).st_nlink == 2)
        #expect(attempt { link(place["a"], place["d"]) } == EPERM)

        for index in 1...2000 { #expect(link(place["file"], place["a/\(index)"]) == 0) }
        #expect(status(place["file"]).st_nlink == 2001)
        for index in 1...1999 { unlink(place["a/\(index)"]) }
        unlink(place["file"])
        #expect(status(place["a/2000"]).st_nlink == 1)
        place.finish()
    }

    // MARK: renaming

    @Test func renameWithFlags() throws {
        let (noReplace, exchange, whiteout) = (1 as UInt32, 2 as UInt32, 4 as UInt32)
        let place = try Place()
        func put(_ path: String, _ text: String) { place.mounted.write(path, text) }
        func text(_ path: String) -> String? { place.contents(path).map { String(decoding: $0, as: UTF8.self) } }
        put("one", "1")
        put("two", "2")
        #expect(test_rename(place["one"], place["two"], noReplace) == EEXIST)
        #expect(test_rename(place["one"], place["one"], noReplace) == EEXIST)
        #expect(test_rename(place["one"], place["three"], noReplace) == 0)
        #expect(test_rename(place["three"], place["two"], exchange) == 0)
        #expect(text("three") == "2" && text("two") == "1")
        #expect(test_rename(place["three"], place["none"], exchange) == ENOENT)
        #expect(test_rename(place["two"], place["two"], exchange) == 0)
        #expect(test_rename(place["three"], place["two"], exchange | noReplace) == EINVAL)
        #expect(test_rename(place["three"], place["two"], exchange | whiteout) == EINVAL)
        #expect(test_rename(place["three"], place["two"], 8) == EINVAL)

        // A character device 0:0 is left behind, over something as well, and by anybody.
        #expect(test_rename(place["three"], place["four"], whiteout) == 0)
        #expect(status(place["three"]).st_mode & S_IFMT == S_IFCHR && status(place["three"]).st_rdev == 0)
        #expect(text("four") == "2")
        #expect(test_rename(place["four"], place["two"], whiteout) == 0)
        #expect(text("two") == "2" && status(place["four"]).st_mode & S_IFMT == S_IFCHR)
        #expect(test_rename(place["two"], place["four"], whiteout | noReplace) == EEXIST)
        place.make("theirs", mode: 0o666, owner: 1000)
        #expect(asUser(1000) { test_rename(place["theirs"], place["away"], whiteout) } == 0)

        // Two names of one file: both stay.
        link(place["two"], place["same"])
        #expect(rename(place["two"], place["same"]) == 0)
        #expect(text("two") == "2" && text("same") == "2")
        place.finish()
    }

    @Test func directoriesCannotMoveIntoThemselves() throws {
        let place = try Place()
        for path in ["a", "a/b", "a/b/c", "x", "x/full"] { mkdir(place[path], 0o755) }
        place.make("file")
        #expect(attempt { rename(place["a"], place["a/b/c/d"]) } == EINVAL)
        #expect(attempt { rename(place["a"], place["a/b"]) } == EINVAL)
        #expect(attempt { rename(place["a/b/c"], place["a"]) } == ENOTEMPTY)
        #expect(test_rename(place["a"], place["a/b/c"], 2) == EINVAL)
        #expect(test_rename(place["a/b/c"], place["a"], 2) == EINVAL)
        #expect(attempt { rename(place["a"], place["x"]) } == ENOTEMPTY)
        #expect(attempt { rename(place["file"], place["x"]) } == EISDIR)
        #expect(attempt { rename(place["x"], place["file"]) } == ENOTDIR)
        #expect(attempt { rename(place["a/."], place["z"]) } == EBUSY)
        // Brothers may change places, and `..` follows.
        #expect(test_rename(place["a/b"], place["x/full"], 2) == 0)
        #expect(access(place["x/full/c"], F_OK) == 0)
        #expect(status(place["x/full/.."]).st_ino == status(place["x"]).st_ino)
        #expect(attempt { rmdir(place["x"]) } == ENOTEMPTY)
        #expect(attempt { rmdir(place["x/."]) } == EINVAL)
        #expect(attempt { rmdir(place["file"]) } == ENOTDIR)
        #expect(attempt { unlink(place["x"]) } == EISDIR)
        place.finish()
    }

    // MARK: kinds of files

    @Test func fifosSocketsAndDevices() throws {
        let place = try Place()
        let nodes: [(mode_t, UInt32)] = [
            (S_IFIFO, 0), (S_IFSOCK, 0), (S_IFREG, 0), (S_IFCHR, test_device(1, 3)), (S_IFBLK, test_device(259, 1_048_575)),
            (S_IFCHR, test_device(4095, 1_048_575)),
        ]
        for (index, (kind, device)) in nodes.enumerated() {
            #expect(mknod(place["node\(index)"], kind | 0o640, UInt(device)) == 0)
        }
        place.mounted.unmount()
        try place.mounted.mount()
        for (index, (kind, device)) in nodes.enumerated() {
            let found = status(place["node\(index)"])
            #expect(found.st_mode == kind | 0o640 && found.st_rdev == UInt(device) && found.st_nlink == 1 && found.st_size == 0)
        }
        #expect(opened(place["node3"], O_WRONLY) { write($0, "abc", 3) == 3 ? 0 : errno } == 0)
        #expect(opened(place["node0"], O_RDWR) { descriptor in
            var byte: UInt8 = 0
            return write(descriptor, "a", 1) == 1 && read(descriptor, &byte, 1) == 1 && byte == 0x61 ? 0 : EIO
        } == 0)
        #expect(attempt { open(place["node1"], O_RDONLY) } == ENXIO)
        #expect(asUser(1000) { attempt { mknod(place["own"], S_IFCHR | 0o666, UInt(test_device(1, 3))) } } == EPERM)

        // A socket that is listened on.
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(place["listening"].utf8)) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let server = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        let client = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        let isConnected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(server, $0, size) == 0 && listen(server, 1) == 0 && connect(client, $0, size) == 0
            }
        }
        #expect(isConnected)
        close(server)
        close(client)
        place.finish()
    }

    // MARK: open

    @Test func openWithFlags() throws {
        let place = try Place()
        place.make("file", size: 3)
        #expect(attempt { open(place["file"], O_CREAT | O_EXCL, 0o644) } == EEXIST)
        symlink("nowhere", place["dangling"])
        #expect(attempt { open(place["dangling"], O_CREAT | O_EXCL | O_WRONLY, 0o644) } == EEXIST)
        #expect(attempt { open(place["dangling"], O_RDONLY | O_NOFOLLOW) } == ELOOP)
        #expect(opened(place["dangling"], O_CREAT | O_WRONLY) { _ in 0 } == 0 && access(place["nowhere"], F_OK) == 0)
        #expect(attempt { open(place["file"], O_DIRECTORY) } == ENOTDIR)
        #expect(attempt { open(place.root, O_WRONLY) } == EISDIR)
        #expect(attempt { open(place["file"] + "/", O_RDONLY) } == ENOTDIR)

        // Appending: whatever the offset, and by two at once.
        let one = open(place["file"], O_WRONLY | O_APPEND)
        let two = open(place["file"], O_WRONLY | O_APPEND)
        for (descriptor, text) in [(one, "1"), (two, "2"), (one, "3")] { #expect(write(descriptor, text, 1) == 1) }
        #expect(pwrite(two, "4", 1, 0) == 1)
        close(one)
        close(two)
        #expect(place.contents("file") == Array("aaa1234".utf8))

        for flag in [O_SYNC, O_DSYNC] {
            #expect(opened(place["synced"], O_CREAT | O_WRONLY | flag) { write($0, "x", 1) == 1 ? 0 : errno } == 0)
            #expect(daybook("stat", place.root).status == 0)
        }
        #expect(opened(place.root, O_RDONLY) { descriptor in attempt { fsync(descriptor) } } == 0)
        place.finish()
    }

    /// What goes around the kernel's cache and what goes through it see one another.
    @Test func directInputAndOutput() throws {
        let place = try Place()
        place.make("file", size: 8192)
        let buffer = AlignedBuffer(count: 8192)
        let descriptor = open(place["file"], O_RDWR | test_o_direct())
        let cached = open(place["file"], O_RDWR)
        #expect(pread(descriptor, buffer.bytes.pointer, 8192, 0) == 8192 && buffer.bytes.array.allSatisfy { $0 == 0x61 })
        memset(buffer.bytes.pointer, 0x62, 8192)
        #expect(pwrite(descriptor, buffer.bytes.pointer, 8192, 4096) == 8192)
        #expect(status(cached).st_size == 12_288)
        var byte: UInt8 = 0
        for (offset, expected) in [(4095, 0x61), (4096, 0x62), (12_287, 0x62)] as [(Int, UInt8)] {
            #expect(pread(cached, &byte, 1, offset) == 1 && byte == expected)
        }
        byte = 0x63
        #expect(pwrite(cached, &byte, 1, 5000) == 1)
        #expect(pread(descriptor, buffer.bytes.pointer, 4096, 4096) == 4096)
        #expect(buffer.bytes.u8(at: 904) == 0x63 && buffer.bytes.u8(at: 903) == 0x62)
        #expect(pread(descriptor, buffer.bytes.pointer, 4096, 1 << 20) == 0)
        #expect(pread(descriptor, buffer.bytes.pointer, 8192, 8192) == 4096, "up to the end")
        close(descriptor)
        close(cached)
        place.finish()
    }

    // MARK: mappings

    @Test func mappings() throws {
        let place = try Place()
        place.make("file", size: 10_000)
        let descriptor = open(place["file"], O_RDWR)
        func map(_ flags: Int32) -> UnsafeMutableRawPointer { mmap(nil, 10_000, PROT_READ | PROT_WRITE, flags, descriptor, 0)! }
        let (one, two, own) = (map(MAP_SHARED), map(MAP_SHARED), map(MAP_PRIVATE))
        func at(_ address: UnsafeMutableRawPointer, _ offset: Int) -> UInt8 { address.load(fromByteOffset: offset, as: UInt8.self) }
        func atFile(_ offset: Int) -> UInt8 {
            var byte: UInt8 = 0
            return pread(descriptor, &byte, 1, offset) == 1 ? byte : 0
        }
        one.storeBytes(of: 0x62, as: UInt8.self)
        #expect(at(two, 0) == 0x62 && at(own, 0) == 0x62 && atFile(0) == 0x62)
        own.storeBytes(of: 0x63, as: UInt8.self)
        #expect(at(two, 0) == 0x62 && atFile(0) == 0x62)
        #expect(pwrite(descriptor, "d", 1, 5000) == 1)
        #expect(at(one, 5000) == 0x64 && at(own, 5000) == 0x64)
        // Behind the end are zeros, and what is stored there goes nowhere.
        #expect(at(one, 10_001) == 0)
        one.storeBytes(of: 0x65, toByteOffset: 10_001, as: UInt8.self)
        one.storeBytes(of: 0x66, toByteOffset: 9999, as: UInt8.self)
        #expect(msync(one, 10_000, MS_SYNC) == 0)
        close(descriptor)
        // Stored after the last close, by the mapping alone.
        one.storeBytes(of: 0x67, toByteOffset: 1, as: UInt8.self)
        #expect(msync(one, 10_000, MS_SYNC) == 0)
        #expect(truncate(place["file"], 10_002) == 0)
        let bytes = try #require(place.contents("file"))
        #expect(bytes.count == 10_002 && bytes[0] == 0x62 && bytes[1] == 0x67 && bytes[5000] == 0x64 && bytes[9999] == 0x66)
        #expect(bytes[10_000] == 0 && bytes[10_001] == 0)
        for address in [one, two, own] { munmap(address, 10_000) }
        place.mounted.unmount()
        try place.mounted.mount()
        #expect(place.contents("file") == bytes)
        place.finish()
    }

    // MARK: locks

    @Test func locks() throws {
        let place = try Place()
        place.make("file")
        let one = open(place["file"], O_RDWR)
        let two = open(place["file"], O_RDWR)
        #expect(test_flock(one, LOCK_EX) == 0 && test_flock(two, LOCK_SH) == EWOULDBLOCK)
        #expect(test_flock(one, LOCK_SH) == 0 && test_flock(two, LOCK_SH) == 0 && test_flock(two, LOCK_EX) == EWOULDBLOCK)
        #expect(test_flock(one, LOCK_UN) == 0 && test_flock(two, LOCK_EX) == 0 && test_flock(two, LOCK_UN) == 0)
        // Of open files, by range.
        #expect(test_lock(one, 1, F_WRLCK, 0, 10) == 0)
        #expect(test_lock(two, 1, F_WRLCK, 5, 10) == EAGAIN && test_lock(two, 1, F_RDLCK, 9, 1) == EAGAIN)
        #expect(test_lock(two, 1, F_WRLCK, 10, 10) == 0)
        #expect(test_lock(one, 1, F_UNLCK, 0, 5) == 0 && test_lock(two, 1, F_RDLCK, 0, 5) == 0)
        // Of this process, against those of open files; then both let go.
        #expect(test_lock(one, 0, F_WRLCK, 7, 1) == EAGAIN)
        #expect(test_lock(one, 1, F_UNLCK, 0, 0) == 0 && test_lock(two, 1, F_UNLCK, 0, 0) == 0)
        #expect(test_lock(one, 0, F_WRLCK, 7, 1) == 0 && test_lock(two, 0, F_WRLCK, 7, 1) == 0, "one process, one owner")
        #expect(test_lock(two, 1, F_RDLCK, 7, 1) == EAGAIN)
        close(one)
        close(two)
        place.finish()
    }

    // MARK: holes

    @Test func dataAndHoles() throws {
        let place = try Place()
        let descriptor = open(place["file"], O_RDWR | O_CREAT, 0o644)
        let block = [UInt8](repeating: 1, count: 4096)
        #expect(pwrite(descriptor, block, 4096, 65_536) == 4096 && pwrite(descriptor, "b", 1, 200_000) == 1)
        #expect(ftruncate(descriptor, 400_000) == 0)
        let (data, hole) = (Int32(3), Int32(4))
        for (from, what, expected) in [
            (0, data, 65_536), (0, hole, 0), (65_536, data, 65_536), (65_536, hole, 69_632), (70_000, data, 196_608),
            (70_000, hole, 70_000), (200_000, data, 200_000), (200_000, hole, 200_704), (399_999, hole, 399_999),
        ] { #expect(lseek(descriptor, from, what) == expected, "\(from) \(what)") }
        for (from, what) in [(300_000, data), (400_000, data), (400_000, hole), (-1, data)] {
            #expect(attempt { lseek(descriptor, from, what) < 0 ? -1 : 0 } == ENXIO, "\(from) \(what)")
        }
        #expect(status(descriptor).st_blocks == 16)
        close(descriptor)
        place.finish()
    }

    @Test func fallocateModes() throws {
        let (keep, punch, zero) = (Int32(1), Int32(2), Int32(0x10))
        let place = try Place()
        place.make("file", size: 10_000)
        let descriptor = open(place["file"], O_RDWR)
        func bytes() -> [UInt8] { place.contents("file") ?? [] }
        #expect(test_fallocate(descriptor, keep, 0, 40_960) == 0)
        #expect(status(descriptor).st_size == 10_000 && status(descriptor).st_blocks == 80)
        #expect(test_fallocate(descriptor, 0, 0, 20_480) == 0)
        #expect(bytes() == [UInt8](repeating: 0x61, count: 10_000) + [UInt8](repeating: 0, count: 10_480))
        #expect(test_fallocate(descriptor, punch | keep, 100, 8192) == 0)
        #expect(test_fallocate(descriptor, zero, 9000, 100) == 0)
        var expected = [UInt8](repeating: 0x61, count: 10_000) + [UInt8](repeating: 0, count: 10_480)
        for index in (100..<8292) { expected[index] = 0 }
        for index in (9000..<9100) { expected[index] = 0 }
        #expect(bytes() == expected)
        #expect(status(descriptor).st_blocks == 72, "one whole block was punched")
        #expect(test_fallocate(descriptor, zero | keep, 20_000, 100_000) == 0 && status(descriptor).st_size == 20_480)
        #expect(test_fallocate(descriptor, zero, 20_000, 100_000) == 0 && status(descriptor).st_size == 120_000)
        // What nobody promises: collapse, insert, unshare, and combinations of nothing.
        for mode in [punch, 8, 0x20, 0x40, 0x41, punch | zero, 0x80] {
            #expect(test_fallocate(descriptor, mode, 0, 4096) == EOPNOTSUPP, "\(mode)")
        }
        #expect(test_fallocate(descriptor, 0, 0, 0) == EINVAL && test_fallocate(descriptor, 0, -1, 1) == EINVAL)
        #expect(test_fallocate(descriptor, 0, .max - 10, 5000) == EFBIG)
        #expect(test_fallocate(descriptor, 0, 0, 1 << 40) == ENOSPC)
        #expect(opened(place["file"], O_RDONLY) { test_fallocate($0, 0, 0, 1) } == EBADF)
        #expect(opened(place.root, O_RDONLY) { test_fallocate($0, 0, 0, 1) } == EBADF)
        close(descriptor)
        place.finish()
    }

    // MARK: files in use

    @Test func filesInUseGoOnWithoutTheirNames() throws {
        let place = try Place()
        place.make("file", size: 5)
        place.make("over", size: 7)
        let removed = open(place["file"], O_RDWR)
        let replaced = open(place["over"], O_RDWR)
        #expect(unlink(place["file"]) == 0)
        place.make("new", size: 9)
        #expect(rename(place["new"], place["over"]) == 0)
        var buffer = [UInt8](repeating: 0, count: 100)
        for (descriptor, size) in [(removed, 5), (replaced, 7)] {
            #expect(status(descriptor).st_nlink == 0)
            #expect(pread(descriptor, &buffer, 100, 0) == size)
            #expect(pwrite(descriptor, "more", 4, size) == 4 && ftruncate(descriptor, 8) == 0)
            #expect(status(descriptor).st_size == 8)
            #expect(fchmod(descriptor, 0o600) == 0 && fsync(descriptor) == 0)
            #expect(attempt { linkat(AT_FDCWD, "/proc/self/fd/\(descriptor)", AT_FDCWD, place["back"], Int32(0x400)) } == ENOENT)
        }
        #expect(place.contents("over")?.count == 9)
        close(removed)
        close(replaced)
        place.finish()
    }

    @Test func aDirectoryThatIsRemovedWhileInUseIsEmptyAndTakesNothing() throws {
        let place = try Place()
        mkdir(place["directory"], 0o755)
        place.make("file")
        let directory = open(place["directory"], O_RDONLY | O_DIRECTORY)
        #expect(rmdir(place["directory"]) == 0)
        #expect(status(directory).st_nlink == 0)
        #expect(attempt { openat(directory, "new", O_CREAT | O_WRONLY, 0o644) } == ENOENT)
        #expect(attempt { mkdirat(directory, "new", 0o755) } == ENOENT)
        #expect(attempt { symlinkat("x", directory, "new") } == ENOENT)
        #expect(attempt { linkat(AT_FDCWD, place["file"], directory, "new", 0) } == ENOENT)
        #expect(attempt { renameat(AT_FDCWD, place["file"], directory, "new") } == ENOENT)
        #expect(ProcessFiles.names("/proc/self/fd/\(directory)").isEmpty)
        #expect(access(place["file"], F_OK) == 0)
        close(directory)
        place.finish()
    }

    /// An entry that is there all the time is listed once; one that comes or goes, once at most.
    @Test func listingWhileEntriesComeAndGo() throws {
        let place = try Place()
        let count = 3000
        mkdir(place["many"], 0o755)
        for index in 0..<count { place.make("many/old\(index)", size: 0) }
        let stream = try #require(opendir(place["many"]))
        var seen: [String: Int] = [:]
        var step = 0
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            seen[name, default: 0] += 1
            step += 1
            // Removed: what was seen, and what was not yet. Renamed entries are other entries.
            if step % 3 == 0 { unlink(place["many/old\(step % count)"]) }
            if step % 5 == 0 { place.make("many/new\(step)", size: 0) }
            if step % 7 == 0 { rename(place["many/old\((step * 31) % count)"], place["many/moved\(step)"]) }
        }
        closedir(stream)
        #expect(seen.values.allSatisfy { $0 == 1 }, "an entry was listed twice")
        let left = Set(ProcessFiles.names(place["many"]))
        for index in 0..<count where left.contains("old\(index)") { #expect(seen["old\(index)"] == 1, "old\(index) was lost") }
        // And from the beginning again, or from where one was.
        let again = try #require(opendir(place["many"]))
        for _ in 0..<500 { _ = readdir(again) }
        let position = telldir(again)
        func rest() -> [UInt] {
            var result: [UInt] = []
            while let entry = readdir(again) { result.append(UInt(entry.pointee.d_ino)) }
            return result
        }
        let first = rest()
        seekdir(again, position)
        #expect(rest() == first && first.count == left.count + 2 - 500)
        closedir(again)
        place.finish()
    }

    // MARK: extended attributes

    @Test func extendedAttributes() throws {
        let place = try Place()
        place.make("file", mode: 0o666, owner: 1000)
        let file = place["file"]
        let large = (0..<65_536).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
        for space in ["user", "trusted", "security"] {
            let longest = space + "." + String(repeating: "n", count: 254 - space.utf8.count)
            #expect(test_set_xattr(file, longest, large, 65_536, 0) == 0)
            #expect(test_set_xattr(file, longest + "n", large, 1, 0) == ERANGE)
            #expect(test_set_xattr(file, space + ".large", large + [0], 65_537, 0) == E2BIG)
            #expect(test_set_xattr(file, space + ".empty", large, 0, 0) == 0)
            #expect(test_get_xattr(file, space + ".empty", nil, 0) == 0)
            #expect(test_set_xattr(file, space + ".", large, 1, 0) == EINVAL)
        }
        #expect(test_set_xattr(file, "nowhere.a", large, 1, 0) == EOPNOTSUPP)
        #expect(test_set_xattr(file, "user.empty", "1", 1, 1) == EEXIST)
        #expect(test_set_xattr(file, "user.none", "1", 1, 2) == ENODATA)
        #expect(test_remove_xattr(file, "user.none") == ENODATA)
        place.mounted.unmount()
        try place.mounted.mount()
        var value = [UInt8](repeating: 0, count: 65_536)
        for space in ["user", "trusted", "security"] {
            let longest = space + "." + String(repeating: "n", count: 254 - space.utf8.count)
            #expect(test_get_xattr(file, longest, &value, 65_536) == 65_536 && value == large)
            #expect(test_get_xattr(file, longest, &value, 65_535) == -Int64(ERANGE))
        }
        #expect(test_list_xattrs(file, nil, 0) == Int64(3 * 256 + 11 + 14 + 15))
        // Users neither see nor touch what is trusted.
        #expect(asUser(1000) { Int32(test_list_xattrs(file, nil, 0)) } == Int32(2 * 256 + 11 + 15))
        #expect(asUser(1000) { Int32(test_get_xattr(file, "trusted.empty", nil, 0)) } == -ENODATA)
        #expect(asUser(1000) { test_set_xattr(file, "trusted.a", "1", 1, 0) } == EPERM)
        #expect(asUser(1000) { test_set_xattr(file, "user.a", "1", 1, 0) } == 0)
        // Links and fifos have no users' attributes, but root's.
        symlink("file", place["link"])
        mkfifo(place["fifo"], 0o666)
        for path in [place["link"], place["fifo"]] {
            #expect(test_set_xattr(path, "user.a", "1", 1, 0) == EPERM)
            #expect(test_set_xattr(path, "trusted.a", "1", 1, 0) == 0)
        }
        #expect(test_set_xattr(place.root, "user.a", "1", 1, 0) == 0)
        // Many of them.
        place.make("many")
        for index in 0..<500 { #expect(test_set_xattr(place["many"], "user.\(index)", large, 100 + index, 0) == 0) }
        #expect(test_list_xattrs(place["many"], &value, 65_536) == Int64((0..<500).reduce(0) { $0 + "user.\($1)".utf8.count + 1 }))
        for index in 0..<500 where index % 2 == 0 { #expect(test_remove_xattr(place["many"], "user.\(index)") == 0) }
        #expect(test_get_xattr(place["many"], "user.499", &value, 65_536) == 599 && value.prefix(599) == large.prefix(599))
        place.finish()
    }

    // MARK: the whole

    @Test func statisticsFollowWhatIsUsed() throws {
        let place = try Place()
        func statistics() -> statvfs {
            var result = statvfs()
            #expect(statvfs(place.root, &result) == 0)
            return result
        }
        let before = statistics()
        #expect(before.f_bsize == 4096 && before.f_frsize == 4096 && before.f_namemax == 255)
        #expect(before.f_blocks == 32_768 && before.f_bfree <= before.f_blocks && before.f_bavail <= before.f_bfree)
        #expect(before.f_files >= before.f_ffree)
        place.make("file", size: 8 << 20)
        let during = statistics()
        #expect(before.f_bfree - during.f_bfree >= 2048 && before.f_bfree - during.f_bfree < 2200)
        #expect(during.f_files - during.f_ffree == before.f_files - before.f_ffree + 1)
        unlink(place["file"])
        for _ in 0..<100 where before.f_bfree > statistics().f_bfree + 200 { usleep(50_000) }
        #expect(before.f_bfree < statistics().f_bfree + 200, "reclaimed a moment later")
        place.finish()
    }
}
