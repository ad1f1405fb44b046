// BlocksCheck: the bitmaps against all claims. Every claimed block must be marked as used, every block marked as used claimed.

import Device
import Format
import Memory

extension Checker {
    func checkBlocks() throws(Cancelled) {
        let page = AlignedBuffer(count: blockSize)
        for number in 0..<UInt64(superblock.regions) {
            if isCancelled() { throw Cancelled() }
            progress(.blocks, Double(number) / Double(superblock.regions))
            guard let item = regions[number] else { continue }
            do throws(DeviceError) { try device.read(item.bitmap, into: page.bytes) } catch {
                found(.bitmapDamaged, error.description, block: item.bitmap)
                continue
            }
            do throws(FormatError) {
                try Region.validate(page.bytes, region: number, item: item, id: superblock.id, blockCount: superblock.blockCount)
            } catch {
                found(.bitmapDamaged, error.description, block: item.bitmap)
                continue
            }
            compare(number, item, page.bytes)
        }
    }

    private func compare(_ number: UInt64, _ item: RegionItem, _ page: RawBytes) {
        let words = owned.words(region: Int(number))
        let first = number * UInt64(Region.blocks)
        var free: UInt32 = 0
        var leak: (start: UInt64, count: UInt64)?
        var missing: (start: UInt64, count: UInt64)?
        func extend(_ run: inout (start: UInt64, count: UInt64)?, _ block: UInt64, _ report: (UInt64, UInt64) -> Void) {
            if let open = run, open.start + open.count == block {
                run!.count += 1
            } else {
                if let open = run { report(open.start, open.count) }
                run = (block, 1)
            }
        }
        for word in 0..<(Region.blocks / 64) {
            let used = page.u64(at: Region.bits + word * 8)
            free += UInt32(64 - used.nonzeroBitCount)
            var expected = words?[word] ?? 0
            let base = first + UInt64(word) * 64
            // Behind the end of the image all is marked as used.
            if base + 64 > superblock.blockCount {
                let inside = base < superblock.blockCount ? superblock.blockCount - base : 0
                expected |= inside == 0 ? .max : UInt64.max << inside
            }
            var difference = used ^ expected
            while difference != 0 {
                let bit = UInt64(difference.trailingZeroBitCount)
                difference &= difference - 1
                if used & (1 << bit) != 0 { extend(&leak, base + bit, takeLeak) } else { extend(&missing, base + bit, takeMissing) }
            }
        }
        if let leak { takeLeak(leak.start, leak.count) }
        if let missing { takeMissing(missing.start, missing.count) }
        if free != item.free {
            found(.regionFreeCount, "region \(number) counts \(item.free) free blocks, its bitmap has \(free)", block: item.bitmap)
        }
    }

    private func takeLeak(_ start: UInt64, _ count: UInt64) {
        guard !ownersAreMissing else { return }
        report.leaks.append(Leak(start: BlockNumber(start), count: count))
        found(.blockLeaked, "\(count) blocks from here on are marked as used, but belong to nothing", block: BlockNumber(start))
    }

    private func takeMissing(_ start: UInt64, _ count: UInt64) {
        let what = start < superblock.blockCount ? owner(of: start) : "the end of the image"
        found(.blockUsedButFree, "\(count) blocks from here on are marked as free, but used by \(what)", block: BlockNumber(start))
    }
}
