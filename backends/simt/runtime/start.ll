; What every launch does, for `start.py`. A device is FIELDS there, and then the kernel's functions, 8 bytes each.

%tl_attribute = type { i32, i32, [8 x i64] } ; CUlaunchAttribute
%tl_config = type { i32, i32, i32, i32, i32, i32, i32, ptr, ptr, i32 } ; CUlaunchConfig
@tl_ones = internal constant [5 x i32] [i32 1, i32 1, i32 1, i32 1, i32 1]

declare i32 @memcmp(ptr, ptr, i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; Puts the map of a tensor at %map. %numbers are its address, extents[5] and strides[5]. The last one is %kept: whether
; a thread is at it, its numbers, and the map. Nobody waits for that thread: others make the map anew.
define internal i64 @tl_map(ptr %device, ptr %kept, ptr %map, ptr %numbers, ptr %boxes, i32 %type, i32 %rank,
                            i32 %permutation) {
  %key = getelementptr i64, ptr %kept, i64 1
  %last = getelementptr i64, ptr %kept, i64 12
  %pair = cmpxchg ptr %kept, i64 0, i64 1 acquire monotonic
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %compare, label %encode
compare:
  %difference = call i32 @memcmp(ptr %key, ptr %numbers, i64 88)
  %same = icmp eq i32 %difference, 0
  br i1 %same, label %copy, label %encode
copy:
  call void @llvm.memcpy.p0.p0.i64(ptr %map, ptr %last, i64 128, i1 false)
  br label %leave
encode:
  %address = load ptr, ptr %numbers
  %extents = getelementptr i64, ptr %numbers, i64 1
  %strides = getelementptr i64, ptr %numbers, i64 7 ; that of neighbours is not told
  %at = getelementptr i64, ptr %device, i64 {encode}
  %function = load ptr, ptr %at
  %code = call i32 %function(ptr %map, i32 %type, i32 %rank, ptr %address, ptr %extents, ptr %strides, ptr %boxes,
                             ptr @tl_ones, i32 0, i32 %permutation, i32 2, i32 0) ; by 128 bytes to L2
  %good = icmp eq i32 %code, 0
  %number = or i32 %code, {encode_failed}
  %wide = zext i32 %number to i64
  %result = select i1 %good, i64 0, i64 %wide
  br i1 %mine, label %keep, label %end
keep:
  br i1 %good, label %store, label %leave
store:
  call void @llvm.memcpy.p0.p0.i64(ptr %key, ptr %numbers, i64 88, i1 false)
  call void @llvm.memcpy.p0.p0.i64(ptr %last, ptr %map, i64 128, i1 false)
  br label %leave
leave:
  %left = phi i64 [ 0, %copy ], [ %result, %keep ], [ 0, %store ]
  store atomic i64 0, ptr %kept release, align 8
  br label %end
end:
  %out = phi i64 [ %left, %leave ], [ %result, %encode ]
  ret i64 %out
}

; Launches a function of the device: so many programs as a grid of two extents, the first of at most %widest clusters.
define internal i64 @tl_go(ptr %device, i64 %which, i64 %programs, i64 %cluster, i64 %widest, i32 %threads,
                           i32 %shared, i1 %overlaps, ptr %stream, ptr %parameters) {
  %before = alloca i64
  %attribute = alloca %tl_attribute
  %config = alloca %tl_config
  %clusters = udiv i64 %programs, %cluster
  %less = sub i64 %clusters, 1
  %full = udiv i64 %less, %widest
  %first = add i64 %full, 1
  br label %try
try:
  %rows = phi i64 [ %first, %0 ], [ %next, %odd ]
  %many = icmp ugt i64 %rows, {rows}
  br i1 %many, label %refuse, label %divide
divide:
  %left = urem i64 %clusters, %rows
  %even = icmp eq i64 %left, 0
  br i1 %even, label %split, label %odd
odd:
  %next = add i64 %rows, 1
  br label %try
refuse:
  ret i64 {too_many}
split:
  %columns = udiv i64 %clusters, %rows
  %wide = mul i64 %columns, %cluster
  %x = trunc i64 %wide to i32
  %y = trunc i64 %rows to i32
  store i64 0, ptr %before ; HIP writes half of it
  %current_at = getelementptr i64, ptr %device, i64 {current}
  %current = load ptr, ptr %current_at
  %asked = call i32 %current(ptr %before)
  %known = icmp eq i32 %asked, 0
  br i1 %known, label %compare, label %lost
lost:
  %why = phi i32 [ %asked, %split ], [ %entered, %enter ], [ %restored, %leave ]
  %number = or i32 %why, {current_failed}
  %failure = zext i32 %number to i64
  ret i64 %failure
compare:
  %own = load i64, ptr %device
  %other = load i64, ptr %before
  %set_at = getelementptr i64, ptr %device, i64 {set}
  %set = load ptr, ptr %set_at
  %here = icmp eq i64 %own, %other
  br i1 %here, label %go, label %enter
enter:
  %entered = call i32 %set(i64 %own) ; HIP takes half of it
  %inside = icmp eq i32 %entered, 0
  br i1 %inside, label %go, label %lost
go:
  %function_at = getelementptr i64, ptr %device, i64 %which
  %function = load ptr, ptr %function_at
  %launch_at = getelementptr i64, ptr %device, i64 {launch}
  %launch = load ptr, ptr %launch_at
  br i1 %overlaps, label %overlapping, label %plain
plain:
  %launched = call i32 %launch(ptr %function, i32 %x, i32 %y, i32 1, i32 %threads, i32 1, i32 1, i32 %shared,
                               ptr %stream, ptr %parameters, ptr null)
  br label %done
overlapping:
  call void @llvm.memset.p0.i64(ptr %attribute, i8 0, i64 72, i1 false)
  store i32 6, ptr %attribute ; CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
  %value = getelementptr i64, ptr %attribute, i64 1
  store i32 1, ptr %value
  %c0 = insertvalue %tl_config { i32 0, i32 0, i32 1, i32 0, i32 1, i32 1, i32 0, ptr null, ptr null, i32 1 }, i32 %x, 0
  %c1 = insertvalue %tl_config %c0, i32 %y, 1
  %c2 = insertvalue %tl_config %c1, i32 %threads, 3
  %c3 = insertvalue %tl_config %c2, i32 %shared, 6
  %c4 = insertvalue %tl_config %c3, ptr %stream, 7
  %c5 = insertvalue %tl_config %c4, ptr %attribute, 8
  store %tl_config %c5, ptr %config
  %begun = call i32 %launch(ptr %config, ptr %function, ptr %parameters, ptr null)
  br label %done
done:
  %code = phi i32 [ %launched, %plain ], [ %begun, %overlapping ]
  br i1 %here, label %end, label %leave
leave:
  %restored = call i32 %set(i64 %other)
  %back = icmp eq i32 %restored, 0
  br i1 %back, label %end, label %lost
end:
  %out = zext i32 %code to i64
  ret i64 %out
}
