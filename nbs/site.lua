-- What both renderers of the site, Quarto and tools/site.py, do to a page before it becomes HTML

local text_of = pandoc.utils.stringify

-- In code, a name without the link that nbdev gives it
local function plain_code(block)
  block.text = block.text:gsub("%[(`[^`]+`)%]%(https?://[^)]*%)", "%1")
  return block
end

-- A method is described with its class, a private name on no page
local function link_to_class(link)
  if link.target:find("%.html#_") then return link.content end
  link.target = link.target:gsub("(%.html#[%w_]+)%.[%w_.]+$", "%1")
  return link
end

-- A text for each picture
local function describe(image)
  local caption = text_of(image.caption)
  if quarto or caption == "" then
    local text = caption ~= "" and caption or "What the code above draws"
    image.attributes[quarto and "fig-alt" or "alt"] = text
  end
  return image
end

-- Warnings are not for the reader
local function without_stderr(div)
  if div.classes:includes("cell-output-stderr") then return {} end
end

-- Where nbdev documents a symbol: a link named "source", a heading, the signature
local function mark_signatures(blocks)
  for i, block in ipairs(blocks) do
    local heading, code = blocks[i + 1], blocks[i + 2]
    if block.t == "Para" and text_of(block) == "source" and heading and heading.t == "Header"
      and code and code.t == "CodeBlock" then
      code.attributes.signature = text_of(heading):match("[%w_]+$")
    end
  end
  return blocks
end

-- No signature where the page has the code itself, which says the same
local function drop_signatures(doc)
  local defined = {}
  doc:walk { CodeBlock = function(block)
    if block.attributes.signature then return end
    for line in block.text:gmatch("[^\n]+") do
      local name = line:match("^%s*def ([%w_]+)") or line:match("^%s*class ([%w_]+)")
      if name then defined[name] = true end
    end
  end }
  return doc:walk { CodeBlock = function(block)
    if defined[block.attributes.signature] then return {} end
    block.attributes.signature = nil
    return block
  end }
end

-- The headings of a page, and in their places `false` for anything else that a reader sees
local function outline(blocks, found)
  for _, block in ipairs(blocks) do
    local is_comment = block.t == "RawBlock" and block.text:match("^%s*<!%-%-.*%-%->%s*$")
    if block.t == "Header" then found:insert(block)
    elseif block.t == "Div" then outline(block.content, found)
    elseif block.t ~= "HorizontalRule" and not is_comment then found:insert(false) end
  end
  return found
end

-- No heading over nothing: what follows it in the notebook may be hidden
local function drop_empty_headings(doc)
  local entries = outline(doc.blocks, pandoc.List())
  local empty, following = {}, nil
  for i = #entries, 1, -1 do
    local entry = entries[i]
    if entry and (following == nil or following and following.level <= entry.level) then
      empty[entry.identifier] = true
    else
      following = entry
    end
  end
  return doc:walk { Header = function(block) if empty[block.identifier] then return {} end end }
end

-- The name of the notebook that the page is made from
local function notebook_name(doc)
  if doc.meta.notebook then return text_of(doc.meta.notebook) end
  if not quarto then return "" end
  return pandoc.path.make_relative(quarto.doc.input_file, quarto.project.directory)
end

-- Where the reader of a track goes from here
local function next_line(track, name, root)
  for i, page in ipairs(track.pages) do
    if text_of(page.notebook) == name then
      local label = pandoc.Link(text_of(track.name), root .. text_of(track.href))
      local coming = track.pages[i + 1]
      if not coming then return pandoc.Inlines { label, " ends here." } end
      local link = pandoc.Link(text_of(coming.title), root .. text_of(coming.href))
      return pandoc.Inlines { "Next on the track ", label, ": ", link }
    end
  end
end

local function add_tracks(doc)
  local name, lines = notebook_name(doc), pandoc.List()
  local root = ("../"):rep(select(2, name:gsub("/", "")))
  for _, track in ipairs(doc.meta.tracks or {}) do
    local line = next_line(track, name, root)
    if line then lines:insert(pandoc.Para(line)) end
  end
  if #lines > 0 then doc.blocks:insert(pandoc.Div(lines, pandoc.Attr("", { "tracks" }))) end
  return doc
end

return {
  { Div = without_stderr, Blocks = mark_signatures },
  { Pandoc = drop_signatures },
  { CodeBlock = plain_code, Link = link_to_class, Image = describe },
  { Pandoc = drop_empty_headings },
  { Pandoc = add_tracks },
}
