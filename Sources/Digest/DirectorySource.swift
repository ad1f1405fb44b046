// DirectorySource: a directory of the running system, for the digest. Every step goes from an open directory to a name in
// it, so that nothing renamed meanwhile, and no symbolic link, leads the walk elsewhere.
//
// A file that changes while it is read gives an error: a digest of no moment would be worth nothing.

import CSupport
import Format
import Glibc
public import Memory

public final class DirectorySource: DigestSource {
    /// A name in an open directory; a directory also has itself open.
    public final class File {
        let parent: Int32
        let name: [UInt8]
        let path: [UInt8]
        var status: stat
        fileprivate(set) var descriptor: Int32 = -1

        init(parent: Int32, name: [UInt8], path: [UInt8], status: stat) {
            self.parent = parent
            self.name = name
            self.path = path
            self.status = status
        }
        deinit { if descriptor >= 0 { close(descriptor) } }
    }

    private let directory: String
    private let buffer = AlignedBuffer(count: 1 << 20)
    /// Attributes that this process was not allowed to read were met.
    public private(set) var missedAttributes = false

    public init(_ directory: String) {
        self.directory = directory
        // One descriptor for each level of the tree.
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
    }

    private func failure(_ path: [UInt8], _ number: Int32 = errno) -> DigestError {
        let place = path.isEmpty ? directory : directory + "/" + String(decoding: path, as: UTF8.self)
        return DigestError("\(place): \(String(cString: strerror(number)))")
    }
    private func changed(_ path: [UInt8]) -> DigestError {
        DigestError("\(directory)/\(String(decoding: path, as: UTF8.self)): changed while it was read")
    }

    // MARK: walking

    public func root() throws(DigestError) -> (node: DigestNode, file: File) {
        let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure([]) }
        let file = File(parent: -1, name: [], path: [], status: stat())
        file.descriptor = descriptor
        guard fstat(descriptor, &file.status) == 0 else { throw failure([]) }
        return (try node(file), file)
    }

    public func names(_ directory: File) throws(DigestError) -> NameList {
        // A descriptor of its own: closedir closes it.
        let copy = openat(directory.descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard copy >= 0, let stream = fdopendir(copy) else { throw failure(directory.path) }
        defer { closedir(stream) }
        var names = NameList()
        while true {
            errno = 0
            guard let entry = readdir(stream) else {
                guard errno == 0 else { throw failure(directory.path) }
                return names
            }
            // The name lies in the stream's buffer until the next call.
            let base = UnsafeMutableRawPointer(entry) + MemoryLayout<dirent>.offset(of: \dirent.d_name)!
            let name = RawBytes(base: base, count: strlen(base.assumingMemoryBound(to: CChar.self)))
            if name.u8(at: 0) == 0x2e && (name.count == 1 || name.count == 2 && name.u8(at: 1) == 0x2e) { continue }
            try names.append(name, token: 0)
        }
    }

    public func child(_ directory: File, _ name: [UInt8], token: UInt64) throws(DigestError) -> (node: DigestNode, file: File) {
        var status = stat()
        let path = directory.path.isEmpty ? name : directory.path + [UInt8(ascii: "/")] + name
        guard fstatat(directory.descriptor, (name + [0]).map { CChar(bitPattern: $0) }, &status, AT_SYMLINK_NOFOLLOW) == 0 else {
            throw errno == ENOENT ? changed(path) : failure(path)
        }
        let file = File(parent: directory.descriptor, name: name, path: path, status: status)
        if status.st_mode & S_IFMT == S_IFDIR { try reopen(file, O_RDONLY | O_DIRECTORY) }
        return (try node(file), file)
    }

    private func node(_ file: File) throws(DigestError) -> DigestNode {
        let status = file.status
        guard let kind = FileKind(mode: status.st_mode) else { throw failure(file.path, EINVAL) }
        var node = DigestNode(
            kind: kind, mode: status.st_mode, uid: status.st_uid, gid: status.st_gid, size: UInt64(max(status.st_size, 0)),
            identity: FileIdentity(filesystem: UInt64(status.st_dev), inode: UInt64(status.st_ino)), isShared: status.st_nlink > 1)
        if kind == .characterDevice || kind == .blockDevice {
            // glibc's dev_t, from <sys/sysmacros.h>.
            let device = UInt64(status.st_rdev)
            node.major = UInt32(truncatingIfNeeded: device >> 8 & 0xfff | device >> 32 & 0xffff_f000)
            node.minor = UInt32(truncatingIfNeeded: device & 0xff | device >> 12 & 0xffff_ff00)
        }
        return node
    }

    /// Opens the file that `fstatat` described, or finds that it is another by now.
    private func reopen(_ file: File, _ flags: Int32) throws(DigestError) {
        let name = (file.name + [0]).map { CChar(bitPattern: $0) }
        let flags = flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
        // Reading should leave no trace; but only the owner may ask for that.
        var descriptor = openat(file.parent, name, flags | daybook_o_noatime())
        if descriptor < 0 && errno == EPERM { descriptor = openat(file.parent, name, flags) }
        guard descriptor >= 0 else { throw failure(file.path) }
        file.descriptor = descriptor
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw failure(file.path) }
        guard status.st_ino == file.status.st_ino, status.st_dev == file.status.st_dev else { throw changed(file.path) }
        file.status = status
    }

    // MARK: attributes

    /// A path for calls that want one: the open directory, then the name, which is not followed.
    private func reference(_ file: File) -> [CChar] {
        let text = file.parent < 0 ? "/proc/self/fd/\(file.descriptor)/." : "/proc/self/fd/\(file.parent)/"
        return (Array(text.utf8) + file.name + [0]).map { CChar(bitPattern: $0) }
    }

    public func xattrs(_ file: File) throws(DigestError) -> [(name: [UInt8], value: [UInt8])] {
        let path = reference(file)
        let names = try grow { daybook_list_xattrs(path, $0, $1) }
        guard let names else {
            if errno == ENOTSUP { return [] }
            throw failure(file.path)
        }
        var result: [(name: [UInt8], value: [UInt8])] = []
        for name in names.split(separator: 0) {
            let attribute = (Array(name) + [0]).map { CChar(bitPattern: $0) }
            guard let value = try grow({ daybook_get_xattr(path, attribute, $0, $1) }) else {
                // Listed, but not for this process to read (trusted.*).
                guard errno == ENODATA || errno == EPERM || errno == EACCES else { throw failure(file.path) }
                missedAttributes = true
                continue
            }
            result.append((Array(name), value))
        }
        return result
    }

    /// Calls for the size, then for the bytes, again while they grow; nil, with `errno` set, when refused.
    private func grow(_ call: (UnsafeMutableRawPointer?, Int) -> Int) throws(DigestError) -> [UInt8]? {
        while true {
            let size = call(nil, 0)
            guard size >= 0 else { return nil }
            guard size > 0 else { return [] }
            var bytes = [UInt8](repeating: 0, count: size)
            let count = bytes.withUnsafeMutableBytes { call($0.baseAddress, $0.count) }
            if count >= 0 { return Array(bytes.prefix(count)) }
            guard errno == ERANGE else { return nil }
        }
    }

    public func target(_ symlink: File) throws(DigestError) -> [UInt8] {
        var target = [UInt8](repeating: 0, count: 65536)
        let count = target.withUnsafeMutableBytes { bytes in
            readlinkat(
                symlink.parent, (symlink.name + [0]).map { CChar(bitPattern: $0) },
                bytes.bindMemory(to: CChar.self).baseAddress!, bytes.count)
        }
        guard count >= 0 else { throw errno == ENOENT || errno == EINVAL ? changed(symlink.path) : failure(symlink.path) }
        return Array(target.prefix(count))
    }

    // MARK: contents

    public func contents(_ file: File, size: UInt64, _ body: (UInt64, RawBytes) -> Void) throws(DigestError) {
        guard size > 0 else { return }
        try reopen(file, O_RDONLY)
        defer {
            close(file.descriptor)
            file.descriptor = -1
        }
        let before = file.status
        guard UInt64(before.st_size) == size else { throw changed(file.path) }
        var at: UInt64 = 0
        while at < size {
            let data = lseek(file.descriptor, off_t(at), 3)  // SEEK_DATA
            if data < 0 && errno == ENXIO { break }
            if data >= 0 { at = UInt64(data) & ~UInt64(blockSize - 1) }
            let wanted = Int(min(UInt64(buffer.bytes.count), size - at))
            let count = try read(file, at: at, wanted)
            guard count == wanted else { throw changed(file.path) }
            body(at, buffer.bytes.slice(0, count))
            at += UInt64(count)
        }
        var after = stat()
        guard fstat(file.descriptor, &after) == 0 else { throw failure(file.path) }
        guard after.st_size == before.st_size, after.st_mtim.tv_sec == before.st_mtim.tv_sec,
            after.st_mtim.tv_nsec == before.st_mtim.tv_nsec
        else { throw changed(file.path) }
    }

    private func read(_ file: File, at offset: UInt64, _ wanted: Int) throws(DigestError) -> Int {
        var done = 0
        while done < wanted {
            let count = pread(file.descriptor, buffer.bytes.pointer + done, wanted - done, off_t(offset) + off_t(done))
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw failure(file.path) }
            guard count > 0 else { break }
            done += count
        }
        return done
    }
}
