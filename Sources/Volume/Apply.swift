// Apply: one record, one change of a view. The same function serves live operation, recovery, past views and crash
// exploration (P6).
//
// (Y1) Apply decides nothing: no clock, no random numbers, no allocation of blocks, no choice of names' offsets. What a record
//      does not say, it does not do (invariant 7).
// (Y2) A record that does not fit the state it meets (an entry that exists already, an inode that does not) is damage
//      and is refused. A live record always fits: the operation that wrote it has checked, under the same lock.
//
// Live, a patch's CRC is filled into the record (its frame is not sealed yet); in replay it is compared.

import Device
public import Format
import Memory
import Space
import Tree

public enum ApplyMode: Sendable { case live, replay }

extension View {
    /// Applies the record whose turn it is.
    public func apply(_ record: Record, _ mode: ApplyMode) throws(ViewError) {
        guard record.sequence.value == sequence.value + 1 else {
            throw .damaged("record \(record.sequence) cannot follow \(sequence)")
        }
        let header = record.header
        let payload = record.payload
        switch record.type {
        case .create, .mkdir, .mknod, .symlink, .tmpfile: try applyMake(MakePayload(payload)!, header)
        case .link: try applyLink(NamePayload(payload)!, header)
        case .unlink, .rmdir: try applyUnlink(NamePayload(payload)!, header)
        case .rename: try applyRename(RenamePayload(payload)!, header)
        case .setattr: try applyAttributes(AttributesPayload(payload)!, header)
        case .truncate, .write, .fallocate: try applyContent(ContentPayload(payload)!, header, mode)
        case .clone:
            let clone = ClonePayload(payload)!
            try applyContent(clone.content, header, mode, clone)
        case .setxattr: try applySetXattr(XattrPayload(payload)!, header)
        case .removexattr: try applyRemoveXattr(XattrPayload(payload)!, header)
        case .access:
            let inode = InodeNumber(payload.u64(at: 0))
            try updateInode(inode, header) { $0.set(i64: payload.i64(at: 8), at: 32) }
        case .reclaim: try applyReclaim(ReclaimPayload(payload)!, header)
        case .horizon: break  // concerns the space state only
        case .tag, .note, .rollback, .restore: throw .damaged("record \(record.sequence): unknown type")
        }
        sequence = record.sequence
    }

    private func mismatch(_ header: RecordHeader, _ what: String) -> ViewError {
        .damaged("record \(header.sequence) (\(header.type.name)) does not fit: \(what)")
    }

    /// An item in a node that its key does not lead to.
    private func misplaced(_ key: Key) -> ViewError { .damaged("item \(key) lies in the wrong node") }

    // MARK: inodes in place (offsets: Format/Items.swift, InodeItem)

    @inline(__always) private func updateInode(
        _ inode: InodeNumber, _ header: RecordHeader, _ change: (RawBytes) -> Void
    ) throws(ViewError) {
        guard let bytes = try update(Key(inode, .inode)), bytes.count == InodeItem.size else {
            throw mismatch(header, "inode \(inode) does not exist")
        }
        change(bytes)
    }

    /// A directory gained or lost an entry, and `links` subdirectories.
    private func touchDirectory(
        _ directory: InodeNumber, _ header: RecordHeader, entries: Int64, links: Int64
    ) throws(ViewError) {
        try updateInode(directory, header) { bytes in
            bytes.set(u64: bytes.u64(at: 16) &+ UInt64(bitPattern: entries), at: 16)
            bytes.set(u32: bytes.u32(at: 12) &+ UInt32(truncatingIfNeeded: links), at: 12)
            bytes.set(i64: header.time.nanoseconds, at: 40)
            bytes.set(i64: header.time.nanoseconds, at: 48)
        }
    }

    private func putInode(_ inode: InodeNumber, _ item: InodeItem) throws(ViewError) {
        item.store(try put(Key(inode, .inode), count: InodeItem.size))
    }

    // MARK: entries in place

    private func putEntry(
        _ directory: InodeNumber, _ offset: UInt64, _ inode: InodeNumber, kind: UInt8, _ name: RawBytes, _ header: RecordHeader
    ) throws(ViewError) {
        let key = Key(directory, .entry, offset)
        guard offset >= NameHash.firstOffset, offset < 1 << 63, try find(key) == nil else {
            throw mismatch(header, "entry \(offset) of directory \(directory) is taken")
        }
        EntryItem.store(try put(key, count: EntryItem.size(nameLength: name.count)), inode: inode, kind: kind, name: name)
    }

    /// The entry must be there, named `name` and leading to `inode`.
    private func expectEntry(
        _ directory: InodeNumber, _ offset: UInt64, _ inode: InodeNumber, _ name: RawBytes, _ header: RecordHeader
    ) throws(ViewError) -> UInt8 {
        guard let value = try find(Key(directory, .entry, offset)), let entry = EntryItem(value), entry.inode == inode,
            entry.name.equals(name)
        else { throw mismatch(header, "directory \(directory) has no entry '\(name.text)' leading to inode \(inode)") }
        return entry.kind
    }

    // MARK: making

    private func applyMake(_ make: MakePayload, _ header: RecordHeader) throws(ViewError) {
        guard let kind = FileKind(mode: make.mode) else { throw mismatch(header, "mode") }
        guard try find(Key(make.inode, .inode)) == nil else { throw mismatch(header, "inode \(make.inode) exists") }
        var item = InodeItem(
            mode: make.mode, uid: make.uid, gid: make.gid, links: kind == .directory ? 2 : 1, time: header.time)
        item.device = make.device
        item.length = UInt64(make.target.count)
        if header.type == .tmpfile {
            item.links = 0
            _ = try put(Key(.none, .orphan, make.inode.value), count: 0)
        } else {
            guard make.name.count > 0 else { throw mismatch(header, "no name") }
            item.parent = make.parent
            item.parentEntry = make.entry
            try putEntry(make.parent, make.entry, make.inode, kind: kind.rawValue, make.name, header)
            try touchDirectory(make.parent, header, entries: 1, links: kind == .directory ? 1 : 0)
        }
        try putInode(make.inode, item)
        try putPieces(make.inode, make.target)
        nextInode = max(nextInode, make.inode.value + 1)
        inodes &+= 1
    }

    private func putPieces(_ owner: InodeNumber, _ bytes: RawBytes) throws(ViewError) {
        var at = 0
        while at < bytes.count {
            let count = min(Piece.size, bytes.count - at)
            try put(Key(owner, .piece, UInt64(at / Piece.size)), count: count).copy(bytes.slice(at, count))
            at += count
        }
    }

    private func removePieces(_ owner: InodeNumber) throws(ViewError) {
        while let found = try next(Key(owner, .piece)), found.key.isOf(owner, .piece) {
            guard try remove(found.key) else { throw misplaced(found.key) }
        }
    }

    private func applyLink(_ link: NamePayload, _ header: RecordHeader) throws(ViewError) {
        guard let bytes = try inodeBytes(link.inode) else { throw mismatch(header, "inode \(link.inode) does not exist") }
        var item = InodeItem(bytes)
        guard !item.isDirectory, item.links < Limit.links else { throw mismatch(header, "inode cannot be linked") }
        try putEntry(link.parent, link.entry, link.inode, kind: item.kind.rawValue, link.name, header)
        try touchDirectory(link.parent, header, entries: 1, links: 0)
        if item.links == 0 { try remove(Key(.none, .orphan, link.inode.value)) }
        item.links += 1
        item.changed = header.time
        item.parent = link.parent
        item.parentEntry = link.entry
        try putInode(link.inode, item)
    }

    // MARK: removing names

    private func applyUnlink(_ name: NamePayload, _ header: RecordHeader) throws(ViewError) {
        let directory = header.type == .rmdir
        let kind = try expectEntry(name.parent, name.entry, name.inode, name.name, header)
        guard (kind == FileKind.directory.rawValue) == directory else { throw mismatch(header, "type of file") }
        try remove(Key(name.parent, .entry, name.entry))
        try touchDirectory(name.parent, header, entries: -1, links: directory ? -1 : 0)
        try dropLink(name.inode, header, parent: name.parent, entry: name.entry)
    }

    /// One name of the inode is gone (of a directory: its only one). Without names it becomes an orphan.
    private func dropLink(
        _ inode: InodeNumber, _ header: RecordHeader, parent: InodeNumber, entry: UInt64
    ) throws(ViewError) {
        guard let bytes = try inodeBytes(inode) else { throw mismatch(header, "inode \(inode) does not exist") }
        var item = InodeItem(bytes)
        guard item.links > 0 else { throw mismatch(header, "inode \(inode) has no links left") }
        if item.isDirectory {
            guard item.length == 0 else { throw mismatch(header, "directory \(inode) is not empty") }
            item.links = 0
        } else {
            item.links -= 1
        }
        item.changed = header.time
        if item.parent == parent && item.parentEntry == entry && !(item.isDirectory && item.links > 0) {
            item.parent = .none
            item.parentEntry = 0
        }
        try putInode(inode, item)
        if item.links == 0 { _ = try put(Key(.none, .orphan, inode.value), count: 0) }
    }

    private func applyRename(_ rename: RenamePayload, _ header: RecordHeader) throws(ViewError) {
        let kind = try expectEntry(rename.parent, rename.entry, rename.inode, rename.name, header)
        let isDirectory = kind == FileKind.directory.rawValue
        if rename.flags & RenamePayload.exchange != 0 {
            let otherKind = try expectEntry(rename.newParent, rename.newEntry, rename.other, rename.newName, header)
            let otherIsDirectory = otherKind == FileKind.directory.rawValue
            try redirect(rename.newParent, rename.newEntry, rename.inode, kind, rename.newName)
            try redirect(rename.parent, rename.entry, rename.other, otherKind, rename.name)
            let moved = rename.parent == rename.newParent ? 0 : (isDirectory ? 1 : 0) - (otherIsDirectory ? 1 : 0)
            try touchDirectory(rename.parent, header, entries: 0, links: Int64(-moved))
            if rename.parent != rename.newParent { try touchDirectory(rename.newParent, header, entries: 0, links: Int64(moved)) }
            try moveInode(rename.inode, header, rename.newParent, rename.newEntry)
            try moveInode(rename.other, header, rename.parent, rename.entry)
            return
        }
        if rename.other != .none {
            _ = try expectEntry(rename.newParent, rename.newEntry, rename.other, rename.newName, header)
            let otherItem = try item(rename.other)
            try remove(Key(rename.newParent, .entry, rename.newEntry))
            try touchDirectory(
                rename.newParent, header, entries: -1, links: otherItem?.isDirectory == true ? -1 : 0)
            try dropLink(rename.other, header, parent: rename.newParent, entry: rename.newEntry)
        }
        try remove(Key(rename.parent, .entry, rename.entry))
        try touchDirectory(rename.parent, header, entries: -1, links: isDirectory ? -1 : 0)
        try putEntry(rename.newParent, rename.newEntry, rename.inode, kind: kind, rename.newName, header)
        try touchDirectory(rename.newParent, header, entries: 1, links: isDirectory ? 1 : 0)
        try moveInode(rename.inode, header, rename.newParent, rename.newEntry)
        if rename.flags & RenamePayload.whiteout != 0 {
            // A character device 0/0 marks the old name as deleted for overlay filesystems.
            guard try find(Key(rename.whiteoutInode, .inode)) == nil, rename.whiteoutInode.value > 1 else {
                throw mismatch(header, "inode \(rename.whiteoutInode) exists")
            }
            var item = InodeItem(mode: 0o020000, uid: header.uid, gid: header.gid, links: 1, time: header.time)
            item.parent = rename.parent
            item.parentEntry = rename.entry
            try putInode(rename.whiteoutInode, item)
            try putEntry(
                rename.parent, rename.entry, rename.whiteoutInode, kind: FileKind.characterDevice.rawValue, rename.name, header)
            try touchDirectory(rename.parent, header, entries: 1, links: 0)
            nextInode = max(nextInode, rename.whiteoutInode.value + 1)
            inodes &+= 1
        }
    }

    private func redirect(
        _ directory: InodeNumber, _ offset: UInt64, _ inode: InodeNumber, _ kind: UInt8, _ name: RawBytes
    ) throws(ViewError) {
        EntryItem.store(
            try put(Key(directory, .entry, offset), count: EntryItem.size(nameLength: name.count)), inode: inode, kind: kind,
            name: name)
    }

    private func moveInode(
        _ inode: InodeNumber, _ header: RecordHeader, _ parent: InodeNumber, _ entry: UInt64
    ) throws(ViewError) {
        try updateInode(inode, header) { bytes in
            bytes.set(i64: header.time.nanoseconds, at: 48)
            bytes.set(u64: parent.value, at: 72)
            bytes.set(u64: entry, at: 80)
        }
    }

    // MARK: attributes

    private func applyAttributes(_ change: AttributesPayload, _ header: RecordHeader) throws(ViewError) {
        guard let bytes = try inodeBytes(change.inode) else { throw mismatch(header, "inode \(change.inode) does not exist") }
        if change.mask & AttributesPayload.mode != 0 {
            guard (bytes.u32(at: 0) ^ change.mode) & 0o170000 == 0 else { throw mismatch(header, "type of file") }
        }
        try updateInode(change.inode, header) { bytes in
            if change.mask & AttributesPayload.mode != 0 { bytes.set(u32: change.mode, at: 0) }
            if change.mask & AttributesPayload.uid != 0 { bytes.set(u32: change.uid, at: 4) }
            if change.mask & AttributesPayload.gid != 0 { bytes.set(u32: change.gid, at: 8) }
            if change.mask & AttributesPayload.accessed != 0 { bytes.set(i64: change.accessed.nanoseconds, at: 32) }
            if change.mask & AttributesPayload.modified != 0 { bytes.set(i64: change.modified.nanoseconds, at: 40) }
            bytes.set(i64: header.time.nanoseconds, at: 48)
        }
    }

    private func applySetXattr(_ xattr: XattrPayload, _ header: RecordHeader) throws(ViewError) {
        guard let bytes = try inodeBytes(xattr.inode) else { throw mismatch(header, "inode \(xattr.inode) does not exist") }
        var item = InodeItem(bytes)
        let key = Key(xattr.inode, .xattr, xattr.entry)
        if let value = try find(key) {
            guard let old = XattrItem(value), old.name.equals(xattr.name) else { throw mismatch(header, "attribute's place is taken") }
            if old.pieces != .none { try removePieces(old.pieces) }
        } else {
            item.xattrs += 1
        }
        if xattr.pieces != .none {
            guard try next(Key(xattr.pieces, .inode))?.key.inode != xattr.pieces else {
                throw mismatch(header, "number \(xattr.pieces) is taken")
            }
            try putPieces(xattr.pieces, xattr.value)
            nextInode = max(nextInode, xattr.pieces.value + 1)
        }
        XattrItem.store(
            try put(key, count: XattrItem.size(nameLength: xattr.name.count, valueLength: xattr.value.count)),
            name: xattr.name, value: xattr.value, pieces: xattr.pieces)
        item.changed = header.time
        try putInode(xattr.inode, item)
    }

    private func applyRemoveXattr(_ xattr: XattrPayload, _ header: RecordHeader) throws(ViewError) {
        let key = Key(xattr.inode, .xattr, xattr.entry)
        guard let value = try find(key), let old = XattrItem(value), old.name.equals(xattr.name),
            let bytes = try inodeBytes(xattr.inode), bytes.u32(at: 88) > 0
        else { throw mismatch(header, "no such attribute") }
        if old.pieces != .none { try removePieces(old.pieces) }
        try remove(key)
        try updateInode(xattr.inode, header) { bytes in
            bytes.set(u32: bytes.u32(at: 88) - 1, at: 88)
            bytes.set(i64: header.time.nanoseconds, at: 48)
        }
    }

    // MARK: content

    private func applyContent(
        _ content: ContentPayload, _ header: RecordHeader, _ mode: ApplyMode, _ clone: ClonePayload? = nil
    ) throws(ViewError) {
        guard let bytes = try inodeBytes(content.inode), FileKind(mode: bytes.u32(at: 0)) == .regular else {
            throw mismatch(header, "inode \(content.inode) is no regular file")
        }
        var added: UInt64 = 0
        var removed: UInt64 = 0
        var at = ContentPayload.firstSegment
        for _ in 0..<content.segments {
            guard let segment = Segment(content.bytes, at: at) else { throw mismatch(header, "segment") }
            if segment.kind != .hole {
                guard segment.home.value >= Superblock.reservedBlocks, segment.home.value < superblock.blockCount,
                    segment.blocks <= superblock.blockCount - segment.home.value
                else { throw mismatch(header, "blocks outside of the image") }
            }
            if let clone { try expectSource(clone, segment, header) }
            let change = try applySegment(content.inode, segment, header, mode)
            added += change.added
            removed += change.removed
            at = segment.next
        }
        if header.flags & RecordHeader.flagTrim != 0 { _ = try put(Key(.none, .orphan, content.inode.value), count: 0) }
        dataBlocks = dataBlocks &+ added &- removed
        try updateInode(content.inode, header) { bytes in
            bytes.set(u32: content.mode, at: 0)
            bytes.set(u64: content.size, at: 16)
            bytes.set(u64: bytes.u64(at: 24) &+ added &- removed, at: 24)
            bytes.set(i64: header.time.nanoseconds, at: 40)
            bytes.set(i64: header.time.nanoseconds, at: 48)
        }
    }

    private func applySegment(
        _ inode: InodeNumber, _ segment: Segment, _ header: RecordHeader, _ mode: ApplyMode
    ) throws(ViewError) -> (added: UInt64, removed: UInt64) {
        let first = segment.fileBlock
        let last = first + segment.blocks
        switch segment.kind {
        case .hole:
            return (0, try removeExtents(inode, from: first, to: last, kept: nil, death: header.sequence))
        case .run, .unwritten:
            try claim(inode, segment)
            let removed = try removeExtents(inode, from: first, to: last, kept: segment.home, death: header.sequence)
            try insertExtent(
                inode, at: first, home: segment.home, count: segment.blocks,
                crcs: segment.kind == .run ? segment.data : nil, birth: header.sequence)
            return (segment.blocks, removed)
        case .patch:
            return (1, try applyPatch(inode, segment, header, mode))
        case .shared:
            guard header.type == .clone, segment.birth < header.sequence else { throw mismatch(header, "segment") }
            // When the record was made these blocks were at home, whatever this replay has of them.
            pages.settle(segment.home, segment.blocks)
            shared.append(Sharing(position: freed.count, start: segment.home, count: segment.blocks))
            let removed = try removeExtents(inode, from: first, to: last, kept: nil, death: header.sequence)
            try insertExtent(
                inode, at: first, home: segment.home, count: segment.blocks, crcs: segment.data, birth: segment.birth)
            return (segment.blocks, removed)
        }
    }

    /// A clone is of holes and of blocks that the source holds, just there, with that birth and those CRCs (Y2). Else blocks of others, or
    /// of nobody, could become a file's, and be freed with it.
    private func expectSource(_ clone: ClonePayload, _ segment: Segment, _ header: RecordHeader) throws(ViewError) {
        if segment.kind == .hole { return }
        let mask = UInt64(blockSize - 1)
        let target = clone.content.offset >> UInt64(blockShift)
        guard segment.kind == .shared, (clone.sourceOffset | clone.content.offset) & mask == 0, segment.fileBlock >= target else {
            throw mismatch(header, "segment")
        }
        let first = clone.sourceOffset >> UInt64(blockShift) + (segment.fileBlock - target)
        var done: UInt64 = 0
        while done < segment.blocks {
            guard let (extent, bytes) = try extent(clone.source, at: first + done), !extent.item.isUnwritten,
                extent.home(first + done) == segment.home + done, extent.item.birth == segment.birth
            else { throw mismatch(header, "inode \(clone.source) does not hold \(segment.home + done)") }
            let count = Int(min(extent.end - first - done, segment.blocks - done)) * 4
            let sums = bytes.slice(ExtentItem.header + Int(first + done - extent.fileBlock) * 4, count)
            guard sums.equals(segment.data.slice(Int(done) * 4, count)) else { throw mismatch(header, "checksums") }
            done += UInt64(count / 4)
        }
    }

    /// Notes blocks that a segment puts to use, unless the file has them in place already.
    private func claim(_ inode: InodeNumber, _ segment: Segment) throws(ViewError) {
        guard recordsClaims else { return }
        var at = segment.fileBlock
        let end = segment.fileBlock + segment.blocks
        while at < end {
            let home = segment.home + (at - segment.fileBlock)
            let found = try extent(inode, from: at)?.extent
            // Up to the next extent, or its end: what is said of its first block holds for all of them.
            var stop = end
            if let found, found.fileBlock < end { stop = found.fileBlock > at ? found.fileBlock : min(found.end, end) }
            defer { at = stop }
            if let found, found.fileBlock <= at, found.home(at) == home { continue }
            if let last = claimed.last, last.start.value + last.count == home.value {
                claimed[claimed.count - 1].count += stop - at
            } else {
                claimed.append((home, stop - at))
            }
        }
    }

    /// Patches one block in memory. Returns blocks the file had there before (0 or 1).
    private func applyPatch(
        _ inode: InodeNumber, _ segment: Segment, _ header: RecordHeader, _ mode: ApplyMode
    ) throws(ViewError) -> UInt64 {
        try claim(inode, segment)
        let slot: PageSlot
        let found = try extent(inode, at: segment.fileBlock)
        if let (extent, bytes) = found, !extent.item.isUnwritten {
            let home = extent.home(segment.fileBlock)
            let crc = ExtentItem.crc(bytes, Int(segment.fileBlock - extent.fileBlock))
            if home == segment.home {
                slot = pages.cache.lookup(home.value)
                guard !slot.isNone, pages.isOpen(slot) else { throw mismatch(header, "\(home) cannot be patched in place") }
            } else {
                let base = try block(home, crc: crc, inode, segment.fileBlock)
                guard pages.mayTake(segment.home) else { throw mismatch(header, "\(segment.home) is in use") }
                slot = pages.addUnposted(home: segment.home)
                pages.cache.page(slot).copy(base)
            }
        } else {
            guard pages.mayTake(segment.home) else { throw mismatch(header, "\(segment.home) is in use") }
            slot = pages.addUnposted(home: segment.home)
            pages.cache.page(slot).zero()
        }
        let page = pages.cache.page(slot)
        page.copy(segment.data, to: segment.offset)
        let crc = page.crc32c()
        switch mode {
        case .live: segment.setPatchedCRC(crc)
        case .replay:
            guard crc == segment.patchedCRC else {
                throw mismatch(header, "patched block has checksum \(hex(crc)), recorded \(hex(segment.patchedCRC))")
            }
        }
        pages.setCRC(slot, crc)
        let removed = try removeExtents(
            inode, from: segment.fileBlock, to: segment.fileBlock + 1, kept: segment.home, death: header.sequence)
        // A block patched in place keeps its birth; that of a merged neighbour may be older still (E3).
        let birth = found.flatMap { $0.extent.home(segment.fileBlock) == segment.home ? $0.extent.item.birth : nil }
        let sum = scratch.bytes.slice(blockSize, 4)
        sum.set(u32: crc, at: 0)
        try insertExtent(
            inode, at: segment.fileBlock, home: segment.home, count: 1, crcs: sum, birth: birth ?? header.sequence)
        return removed
    }

    /// The contents of a home block, from memory or, where that is allowed, from the device, verified.
    func block(
        _ home: BlockNumber, crc: UInt32, _ inode: InodeNumber, _ fileBlock: UInt64
    ) throws(ViewError) -> RawBytes {
        var slot = pages.cache.lookup(home.value)
        if slot.isNone {
            guard tree.mayRead else { throw .missingPage(home, crc: crc, inode, fileBlock: fileBlock) }
            let buffer = AlignedBuffer(count: blockSize)
            try readBlock(home, crc: crc, inode, fileBlock, into: buffer.bytes)
            pages.addClean(home: home, crc: crc, buffer.bytes)
            slot = pages.cache.lookup(home.value)
        }
        return pages.cache.page(slot)
    }

    /// Reads and verifies one data block; needs no lock.
    func readBlock(
        _ home: BlockNumber, crc: UInt32, _ inode: InodeNumber, _ fileBlock: UInt64, into bytes: RawBytes
    ) throws(ViewError) {
        do throws(DeviceError) { try device.read(home, into: bytes) } catch {
            throw .device(
                DeviceError(
                    .read, errno: error.errno, "\(error.description) (inode \(inode), offset \(fileBlock << UInt64(blockShift)))"))
        }
        let sum = bytes.crc32c()
        guard sum == crc else {
            throw .damaged(
                "\(home) (inode \(inode), offset \(fileBlock << UInt64(blockShift))): checksum \(hex(sum)), expected \(hex(crc))")
        }
    }

    // MARK: reclaiming

    private func applyReclaim(_ reclaim: ReclaimPayload, _ header: RecordHeader) throws(ViewError) {
        for index in 0..<reclaim.count {
            guard let entry = reclaim.entry(index) else { throw mismatch(header, "outcome") }
            guard let bytes = try inodeBytes(entry.inode) else { throw mismatch(header, "inode \(entry.inode) does not exist") }
            var item = InodeItem(bytes)
            let removed = try removeExtents(
                entry.inode, from: entry.fromBlock, to: 1 << 52, kept: nil, death: header.sequence)
            dataBlocks = dataBlocks &- removed
            switch entry.outcome {
            case .partly, .trimmed:
                guard item.links == 0 || entry.fromBlock >= (item.length + UInt64(blockSize) - 1) >> UInt64(blockShift) else {
                    throw mismatch(header, "would free data before the end of inode \(entry.inode)")
                }
                item.blocks = item.blocks &- removed
                try putInode(entry.inode, item)
                if entry.outcome == .trimmed && item.links > 0 { try remove(Key(.none, .orphan, entry.inode.value)) }
            case .remove:
                guard item.links == 0, entry.fromBlock == 0, item.length == 0 || !item.isDirectory else {
                    throw mismatch(header, "inode \(entry.inode) is still in use")
                }
                try removeEverything(entry.inode, item)
                inodes = inodes &- 1
            }
        }
    }

    private func removeEverything(_ inode: InodeNumber, _ item: InodeItem) throws(ViewError) {
        if item.xattrs > 0 {
            while let found = try next(Key(inode, .xattr)), found.key.isOf(inode, .xattr) {
                let pieces = XattrItem(found.value)?.pieces ?? .none
                guard try remove(found.key) else { throw misplaced(found.key) }
                if pieces != .none { try removePieces(pieces) }
            }
        }
        if item.kind == .symlink { try removePieces(inode) }
        try remove(Key(inode, .inode))
        try remove(Key(.none, .orphan, inode.value))
    }
}
