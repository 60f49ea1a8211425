"""A workflow as the page saves it, in the form that ComfyUI's server takes."""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def as_prompt(workflow, classes):
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        values = list(node["widgets_values"])
        inputs = {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        given = classes[node["type"]].INPUT_TYPES()
        given = {**given.get("required", {}), **given.get("optional", {})}
        for name, (kind, *options) in given.items():
            if name in inputs or not (isinstance(kind, list) or kind in WIDGETS):
                continue
            inputs[name] = values.pop(0)
            if name == "seed" or (options and options[0].get("control_after_generate")):
                # The page's own widget: fixed, randomize, ...
                values.pop(0)
        assert not values, f"{node['type']} has {len(values)} values too many"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
